"""Definitions to compare with: loops over NumPy arrays, no JAX, written to be read."""

import numpy as np


def conv2d(images, kernel, strides=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Cross-correlate images [N, H, W, I] with a kernel [kh, kw, I / groups, O]."""
    (p, q), (s, t), (d, e) = padding, strides, dilation
    images = np.pad(images, ((0, 0), (p, p), (q, q), (0, 0))).astype(np.float64)
    n, h, w, _ = images.shape
    kh, kw, i, o = kernel.shape
    height, width = (h - d * (kh - 1) - 1) // s + 1, (w - e * (kw - 1) - 1) // t + 1
    out = np.zeros((n, height, width, o), np.float64)
    for group in range(groups):
        into, outof = _group(group, i), _group(group, o // groups)
        for a in range(kh):
            for b in range(kw):
                for row in range(height):
                    for column in range(width):
                        pixel = images[:, row * s + a * d, column * t + b * e, into]
                        weights = kernel[a, b, :, outof].astype(np.float64)
                        out[:, row, column, outof] += pixel @ weights
    return out


def _group(number, size):
    return slice(number * size, (number + 1) * size)


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


def pool(
    images, window, strides, padding, mode, dilation=(1, 1), ceil_mode=False, count_include_pad=True
):
    """Pool images [N, H, W, C]; padded pixels are zeros to a mean and nothing to a maximum."""
    out = {}
    for i, j, inside, counted in _windows(images, window, strides, padding, dilation, ceil_mode):
        pixels = np.stack([images[:, a, b, :].astype(np.float64) for a, b in inside])
        counted = counted if count_include_pad else len(inside)
        value = pixels.max(0) if mode == "max" else pixels.sum(0) / counted
        out[i, j] = value
    rows, columns = (1 + max(place[axis] for place in out) for axis in (0, 1))
    return np.stack([np.stack([out[i, j] for j in range(columns)], 1) for i in range(rows)], 1)


def _windows(images, window, strides, padding, dilation, ceil_mode):
    """Yield each window's place, its pixels within the image, and how many within the padding."""
    _, h, w, _ = images.shape

    def places(length, size, stride, pad, gap):
        start = -pad
        reach = gap * (size - 1) + 1
        found = []
        while start + reach <= length + pad or (
            ceil_mode and start < length and start + reach - stride < length + pad
        ):
            found.append([start + gap * k for k in range(size)])
            start += stride
        return found

    rows = places(h, window[0], strides[0], padding[0], dilation[0])
    columns = places(w, window[1], strides[1], padding[1], dilation[1])
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            inside = [(a, b) for a in row for b in column if 0 <= a < h and 0 <= b < w]
            counted = sum(a < h + padding[0] and b < w + padding[1] for a in row for b in column)
            yield i, j, inside, counted


def batch_norm(x, mean, var, train, momentum=0.9, epsilon=1e-5):
    """Normalise x [N, H, W, C]; return it with the new running mean and (biased) variance."""
    if train:
        batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - batch_mean) / np.sqrt(batch_var + epsilon)
        mean = momentum * mean + (1 - momentum) * batch_mean
        return y, mean, momentum * var + (1 - momentum) * batch_var
    return (x - mean) / np.sqrt(var + epsilon), mean, var


def conv2d_gradients(images, kernel, strides, padding, cotangent, dilation=(1, 1), groups=1):
    """Return the gradients of sum(cotangent * conv2d(...)) by images and by kernel."""
    (p, q), (s, t), (d, e) = padding, strides, dilation
    padded = np.pad(images, ((0, 0), (p, p), (q, q), (0, 0))).astype(np.float64)
    kernel, cotangent = kernel.astype(np.float64), cotangent.astype(np.float64)
    by_images, by_kernel = np.zeros_like(padded), np.zeros(kernel.shape)
    _, _, i, o = kernel.shape
    for group in range(groups):
        into, outof = _group(group, i), _group(group, o // groups)
        for a in range(kernel.shape[0]):
            for b in range(kernel.shape[1]):
                weights = kernel[a, b, :, outof]
                for row in range(cotangent.shape[1]):
                    for column in range(cotangent.shape[2]):
                        place = (slice(None), row * s + a * d, column * t + b * e, into)
                        g = cotangent[:, row, column, outof]
                        by_images[place] += g @ weights.T
                        by_kernel[a, b, :, outof] += padded[place].T @ g
    _, h, w, _ = images.shape
    return by_images[:, p : p + h, q : q + w], by_kernel


def pool_gradient(images, window, strides, padding, mode, cotangent, **options):
    """Return the gradient of sum(cotangent * pool(...)); of equal maxima the first gets it."""
    counts_padding = options.pop("count_include_pad", True)
    dilation, ceil_mode = options.get("dilation", (1, 1)), options.get("ceil_mode", False)
    gradient = np.zeros(images.shape, np.float64)
    for i, j, inside, counted in _windows(images, window, strides, padding, dilation, ceil_mode):
        counted = counted if counts_padding else len(inside)
        for n in range(images.shape[0]):
            for c in range(images.shape[3]):
                if mode == "avg":
                    for a, b in inside:
                        gradient[n, a, b, c] += cotangent[n, i, j, c] / counted
                else:
                    a, b = max(inside, key=lambda place: images[n, place[0], place[1], c])
                    gradient[n, a, b, c] += cotangent[n, i, j, c]
    return gradient


def dense(x, kernel, bias):
    """Multiply rows x [N, I] by a kernel [I, O] and add a bias [O]."""
    y = np.zeros((len(x), kernel.shape[1]), np.result_type(x, kernel, bias))
    for n, o in np.ndindex(*y.shape):
        y[n, o] = bias[o] + sum(x[n, i] * kernel[i, o] for i in range(len(kernel)))
    return y


def dense_gradients(x, kernel, cotangent):
    """Return the gradients of <dense, cotangent> with respect to x, kernel and bias."""
    of_x, of_kernel, of_bias = (
        np.zeros(shape) for shape in (x.shape, kernel.shape, kernel.shape[1])
    )
    for n, o in np.ndindex(*cotangent.shape):
        of_bias[o] += cotangent[n, o]
        for i in range(len(kernel)):
            of_x[n, i] += cotangent[n, o] * kernel[i, o]
            of_kernel[i, o] += cotangent[n, o] * x[n, i]
    return of_x, of_kernel, of_bias


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
