"""d2l's networks in PyTorch, as their state dicts name them; for tests alone."""

from collections import OrderedDict

import torch
from torch import nn


def init_cnn(module):
    """Draw Xavier uniform weights, as d2l does; biases stay as PyTorch draws them."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)


class Classifier(nn.Module):
    """A network whose layers are in `net`."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x)


def lenet(activation=nn.Sigmoid, pool=nn.AvgPool2d, size=(28, 28)):
    """Return LeNet for images of this height and width, with d2l's initial weights."""
    height, width = (n // 4 - 2 for n in size)
    net = Classifier(
        *(nn.Conv2d(1, 6, 5, padding=2), activation(), pool(2, 2)),
        *(nn.Conv2d(6, 16, 5), activation(), pool(2, 2)),
        nn.Flatten(),
        *(nn.Linear(16 * height * width, 120), activation()),
        *(nn.Linear(120, 84), activation()),
        nn.Linear(84, 10),
    )
    return net.apply(init_cnn)


def lenet_modern():
    """Return LeNet with ReLU and max pooling."""
    return lenet(nn.ReLU, nn.MaxPool2d)


def alexnet(size, dropout=0.5):
    """Return AlexNet for square images, with d2l's initial weights."""
    side = size
    for kernel, stride, padding in ((11, 4, 1), (3, 2, 0), (3, 2, 0), (3, 2, 0)):
        side = (side + 2 * padding - kernel) // stride + 1  # of the pools, and the first conv
    net = Classifier(
        *(nn.Conv2d(1, 96, 11, stride=4, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(96, 256, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2)),
        nn.Flatten(),
        *(nn.Linear(256 * side * side, 4096), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(4096, 10),
    )
    return net.apply(init_cnn)


def vgg(arch, size, dropout=0.5, hidden=4096):
    """Return VGG for a height and width, or one number for both, with d2l's initial weights."""
    blocks, channels = [], 1
    for num_convs, out_channels in arch:
        layers = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
            channels = out_channels
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2, 2)))
    sizes = size if isinstance(size, tuple) else (size, size)
    height, width = (n // 2 ** len(arch) for n in sizes)
    net = Classifier(
        *blocks,
        nn.Flatten(),
        *(nn.Linear(channels * height * width, hidden), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(hidden, 10),
    )
    return net.apply(init_cnn)


def nin_block(in_channels, channels, kernel_size, strides, padding):
    """Return a convolution and two of 1 x 1, with ReLU."""
    first = nn.Conv2d(in_channels, channels, kernel_size, stride=strides, padding=padding)
    ones = (nn.Conv2d(channels, channels, 1) for _ in range(2))
    return nn.Sequential(first, nn.ReLU(), next(ones), nn.ReLU(), next(ones), nn.ReLU())


def nin(arch, dropout=0.5):
    """Return NiN, with d2l's initial weights."""
    layers, before = [], 1
    for channels, *window in arch:
        layers += [nin_block(before, channels, *window), nn.MaxPool2d(3, stride=2)]
        before = channels
    last = nin_block(before, 10, 3, 1, 1)
    pool = nn.AdaptiveAvgPool2d((1, 1))
    return Classifier(*layers, nn.Dropout(dropout), last, pool, nn.Flatten()).apply(init_cnn)


class Inception(nn.Module):
    """Four branches, concatenated."""

    def __init__(self, in_channels, c1, c2, c3, c4):
        super().__init__()
        self.b1_1 = nn.Conv2d(in_channels, c1, 1)
        self.b2_1 = nn.Conv2d(in_channels, c2[0], 1)
        self.b2_2 = nn.Conv2d(c2[0], c2[1], 3, padding=1)
        self.b3_1 = nn.Conv2d(in_channels, c3[0], 1)
        self.b3_2 = nn.Conv2d(c3[0], c3[1], 5, padding=2)
        self.b4_1 = nn.MaxPool2d(3, stride=1, padding=1)
        self.b4_2 = nn.Conv2d(in_channels, c4, 1)

    def forward(self, x):
        relu = nn.functional.relu
        b1 = relu(self.b1_1(x))
        b2 = relu(self.b2_2(relu(self.b2_1(x))))
        b3 = relu(self.b3_2(relu(self.b3_1(x))))
        b4 = relu(self.b4_2(self.b4_1(x)))
        return torch.cat((b1, b2, b3, b4), dim=1)


def googlenet(arch):
    """Return GoogLeNet, with d2l's initial weights."""

    def pool():
        return nn.MaxPool2d(3, stride=2, padding=1)

    b1 = [nn.Conv2d(1, 64, 7, stride=2, padding=3), nn.ReLU(), pool()]
    b2 = [nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), pool()]
    parts, before = [nn.Sequential(*b1), nn.Sequential(*b2)], 192
    for stage, blocks in enumerate(arch, start=1):
        layers = []
        for c1, c2, c3, c4 in blocks:
            layers.append(Inception(before, c1, c2, c3, c4))
            before = c1 + c2[1] + c3[1] + c4
        is_last = stage == len(arch)
        layers += [nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()] if is_last else [pool()]
        parts.append(nn.Sequential(*layers))
    return Classifier(*parts, nn.Linear(before, 10)).apply(init_cnn)


class Residual(nn.Module):
    """Two 3 x 3 convolutions added to their input."""

    def __init__(self, in_channels, channels, use_1x1conv=False, strides=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, stride=strides)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(in_channels, channels, 1, stride=strides) if use_1x1conv else None
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
        return nn.functional.relu(y + (self.conv3(x) if self.conv3 else x))


class ResNeXtBlock(nn.Module):
    """Three convolutions added to their input, the middle one with groups."""

    def __init__(
        self, in_channels, channels, use_1x1conv=False, strides=1, *, groups=16, bot_mul=1
    ):
        super().__init__()
        middle = round(channels * bot_mul)
        groups = middle // groups
        self.conv1 = nn.Conv2d(in_channels, middle, 1)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=strides, padding=1, groups=groups)
        self.conv3 = nn.Conv2d(middle, channels, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(middle), nn.BatchNorm2d(middle)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv4 = nn.Conv2d(in_channels, channels, 1, stride=strides) if use_1x1conv else None
        self.bn4 = nn.BatchNorm2d(channels) if use_1x1conv else None

    def forward(self, x):
        relu = nn.functional.relu
        y = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return relu(self.bn3(self.conv3(y)) + (self.bn4(self.conv4(x)) if self.conv4 else x))


def resnet(arch, block=Residual):
    """Return a ResNet, with PyTorch's initial weights: d2l's let rounding grow faster."""
    channels = arch[0][1]
    stem = [nn.Conv2d(1, channels, 7, stride=2, padding=3), nn.BatchNorm2d(channels), nn.ReLU()]
    model = Classifier(nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1)))
    for stage, (num_residuals, out_channels) in enumerate(arch):
        blocks = []
        for i in range(num_residuals):
            halve = i == 0 and stage > 0
            blocks.append(block(channels, out_channels, halve, 2 if halve else 1))
            channels = out_channels
        model.net.add_module(f"b{stage + 2}", nn.Sequential(*blocks))
    last = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(channels, 10))
    model.net.add_module("last", last)
    return model


def resnext(arch):
    """Return a ResNet of d2l's ResNeXt blocks."""
    return resnet(arch, ResNeXtBlock)


def densenet(arch, num_channels=64, growth_rate=32):
    """Return DenseNet, with PyTorch's initial weights."""
    stem = [nn.Conv2d(1, num_channels, 7, stride=2, padding=3), nn.BatchNorm2d(num_channels)]
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    model = Classifier(nn.Sequential(*stem, nn.ReLU(), pool))
    for i, num_convs in enumerate(arch, start=1):
        model.net.add_module(f"dense_blk{i}", DenseBlock(num_convs, num_channels, growth_rate))
        num_channels += num_convs * growth_rate
        if i < len(arch):
            half = num_channels // 2
            transition = [nn.BatchNorm2d(num_channels), nn.ReLU(), nn.Conv2d(num_channels, half, 1)]
            model.net.add_module(f"tran_blk{i}", nn.Sequential(*transition, nn.AvgPool2d(2, 2)))
            num_channels = half
    last = [nn.BatchNorm2d(num_channels), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()]
    model.net.add_module("last", nn.Sequential(*last, nn.Linear(num_channels, 10)))
    return model


class DenseBlock(nn.Module):
    """Convolutions, each of all before it."""

    def __init__(self, num_convs, in_channels, channels):
        super().__init__()
        widths = [in_channels + i * channels for i in range(num_convs)]
        self.net = nn.Sequential(
            *(
                nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, channels, 3, padding=1))
                for n in widths
            )
        )

    def forward(self, x):
        for block in self.net:
            x = torch.cat((x, block(x)), dim=1)
        return x


class SmallNet(nn.Module):
    """Stem and stages of two convolutions; the second is added to the first."""

    def __init__(self, arch, stem_channels, stem_kernel_size, stem_pool, logit_scale):
        super().__init__()
        self.stages, self.logit_scale = len(arch), logit_scale
        pool = [nn.MaxPool2d(2, 2)] if stem_pool else []
        blocks = {"stem": _conv_block(1, stem_channels, *pool, size=stem_kernel_size)}
        channels = stem_channels
        for i, width in enumerate(arch, start=1):
            blocks[f"stage{i}"] = _conv_block(channels, width, nn.MaxPool2d(2, 2))
            blocks[f"stage{i}_residual"] = _conv_block(width, width)
            channels = width
        self.net = nn.ModuleDict(blocks | {"last": nn.Linear(channels, 10)})

    def forward(self, x):
        x = self.net["stem"](x)
        for i in range(1, self.stages + 1):
            x = self.net[f"stage{i}"](x)
            x = x + self.net[f"stage{i}_residual"](x)
        return self.logit_scale * self.net["last"](x.amax(dim=(2, 3)))


def _conv_block(in_channels, channels, *pool, size=3):
    """Return a convolution, pooling if any, BatchNorm and ReLU, by their names."""
    layers = {"conv": nn.Conv2d(in_channels, channels, size, padding=size // 2, bias=False)}
    layers |= {f"pool{i}": layer for i, layer in enumerate(pool)}
    return nn.Sequential(OrderedDict(layers | {"bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}))


def small(arch, stem_channels, stem_kernel_size=3, stem_pool=False, logit_scale=0.5):
    """Return a network for small images, with d2l's initial weights."""
    net = SmallNet(arch, stem_channels, stem_kernel_size, stem_pool, logit_scale)
    return net.apply(init_cnn)
