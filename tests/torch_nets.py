"""d2l's networks in PyTorch, as their state dicts name them; for tests alone."""

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


def vgg(arch, size, dropout=0.5):
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
        *(nn.Linear(channels * height * width, 4096), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(4096, 10),
    )
    return net.apply(init_cnn)


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


def resnet(arch):
    """Return a ResNet, with PyTorch's initial weights: d2l's let rounding grow faster."""
    channels = arch[0][1]
    stem = [nn.Conv2d(1, channels, 7, stride=2, padding=3), nn.BatchNorm2d(channels), nn.ReLU()]
    model = Classifier(nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1)))
    for stage, (num_residuals, out_channels) in enumerate(arch):
        blocks = []
        for i in range(num_residuals):
            halve = i == 0 and stage > 0
            blocks.append(Residual(channels, out_channels, halve, 2 if halve else 1))
            channels = out_channels
        model.net.add_module(f"b{stage + 2}", nn.Sequential(*blocks))
    last = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(channels, 10))
    model.net.add_module("last", last)
    return model
