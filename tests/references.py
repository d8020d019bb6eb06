"""Definitions to compare with: loops over NumPy arrays, no JAX, written to be read."""

import numpy as np


def conv2d(images, kernel, strides=(1, 1), padding=(0, 0)):
    """Cross-correlate images [N, H, W, I] with a kernel [kh, kw, I, O]."""
    (p, q), (s, t) = padding, strides
    images = np.pad(images, ((0, 0), (p, p), (q, q), (0, 0)))
    n, h, w, _ = images.shape
    kh, kw, _, o = kernel.shape
    out = np.zeros((n, (h - kh) // s + 1, (w - kw) // t + 1, o), np.float64)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for a in range(kh):
                for b in range(kw):
                    pixel = images[:, i * s + a, j * t + b, :].astype(np.float64)
                    out[:, i, j, :] += pixel @ kernel[a, b].astype(np.float64)
    return out


def corr2d(x, k):
    """Cross-correlate x [H, W] with k [kh, kw]."""
    h, w = k.shape
    out = np.zeros((x.shape[0] - h + 1, x.shape[1] - w + 1), np.float64)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = sum(x[i + a, j + b] * k[a, b] for a in range(h) for b in range(w))
    return out


def corr2d_multi_in_out(x, k):
    """Cross-correlate x [I, H, W] with k [O, I, kh, kw]."""
    return np.stack([sum(corr2d(x[c], k[o, c]) for c in range(len(x))) for o in range(len(k))])


def pool(images, window, strides, padding, mode):
    """Pool images [N, H, W, C]; padded pixels are zeros to a mean and nothing to a maximum."""
    (ph, pw), (s, t), (p, q) = window, strides, padding
    fill = -np.inf if mode == "max" else 0.0
    images = np.pad(
        images.astype(np.float64), ((0, 0), (p, p), (q, q), (0, 0)), constant_values=fill
    )
    n, h, w, c = images.shape
    out = np.zeros((n, (h - ph) // s + 1, (w - pw) // t + 1, c))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            patch = images[:, i * s : i * s + ph, j * t : j * t + pw, :]
            out[:, i, j, :] = patch.max((1, 2)) if mode == "max" else patch.sum((1, 2)) / (ph * pw)
    return out


def batch_norm(x, mean, var, train, momentum=0.9, epsilon=1e-5):
    """Normalise x [N, H, W, C]; return it with the new running mean and (biased) variance."""
    if train:
        batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - batch_mean) / np.sqrt(batch_var + epsilon)
        mean = momentum * mean + (1 - momentum) * batch_mean
        return y, mean, momentum * var + (1 - momentum) * batch_var
    return (x - mean) / np.sqrt(var + epsilon), mean, var


def conv2d_gradients(images, kernel, strides, padding, cotangent):
    """Return the gradients of sum(cotangent * conv2d(...)) by images and by kernel."""
    (p, q), (s, t) = padding, strides
    padded = np.pad(images, ((0, 0), (p, p), (q, q), (0, 0))).astype(np.float64)
    by_images, by_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    for i in range(cotangent.shape[1]):
        for j in range(cotangent.shape[2]):
            for a in range(kernel.shape[0]):
                for b in range(kernel.shape[1]):
                    by_images[:, i * s + a, j * t + b] += cotangent[:, i, j] @ kernel[a, b].T
                    by_kernel[a, b] += padded[:, i * s + a, j * t + b].T @ cotangent[:, i, j]
    _, h, w, _ = images.shape
    return by_images[:, p : p + h, q : q + w], by_kernel


def pool_gradient(images, window, strides, padding, mode, cotangent):
    """Return the gradient of sum(cotangent * pool(...)); of equal maxima the first gets it."""
    (ph, pw), (s, t), (p, q) = window, strides, padding
    fill = -np.inf if mode == "max" else 0.0
    padded = np.pad(
        images.astype(np.float64), ((0, 0), (p, p), (q, q), (0, 0)), constant_values=fill
    )
    gradient = np.zeros_like(padded)
    for n, i, j, c in np.ndindex(cotangent.shape):
        rows, columns = slice(i * s, i * s + ph), slice(j * t, j * t + pw)
        if mode == "avg":
            gradient[n, rows, columns, c] += cotangent[n, i, j, c] / (ph * pw)
        else:
            a, b = divmod(int(padded[n, rows, columns, c].argmax()), pw)
            gradient[n, i * s + a, j * t + b, c] += cotangent[n, i, j, c]
    _, h, w, _ = images.shape
    return gradient[:, p : p + h, q : q + w]


def cross_entropy(logits, labels):
    """Return the mean softmax cross-entropy of logits [N, K] and labels [N]."""
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -np.mean([log_probabilities[i, label] for i, label in enumerate(labels)])


def tiny_lenet(params, images):
    """Conv 3 x 3, sigmoid, mean of 2 x 2, dense, sigmoid, dense: logits."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = conv2d(images, params["conv"]["kernel"], padding=(1, 1)) + params["conv"]["bias"]
    x = pool(sigmoid(x), (2, 2), (2, 2), (0, 0), "avg").reshape(len(images), -1)
    x = sigmoid(x @ params["dense1"]["kernel"] + params["dense1"]["bias"])
    return x @ params["dense2"]["kernel"] + params["dense2"]["bias"]


def sgd_step(loss, params, learning_rate, epsilon=1e-5):
    """Return the loss, and the parameters after a step down its central differences."""
    stepped = {layer: {k: v.copy() for k, v in p.items()} for layer, p in params.items()}
    for layer, leaves in params.items():
        for name, values in leaves.items():
            for index in np.ndindex(values.shape):
                value, ends = values[index], []
                for sign in (1, -1):
                    values[index] = value + sign * epsilon
                    ends.append(loss(params))
                values[index] = value
                slope = (ends[0] - ends[1]) / (2 * epsilon)
                stepped[layer][name][index] -= learning_rate * slope
    return loss(params), stepped
