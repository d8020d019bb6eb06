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
