"""The residual networks for 32 px of He et al. 2016 (Sec. 4.2), with projections as shortcuts."""

import re

from torch import nn

from advlib.data.vision import torchvision

CIFAR_RESNET = re.compile(r"cifar_resnet(\d+)(?:_w(\d+))?(_s2)?")


def cifar_resnet(name: str, num_classes: int, channels: int) -> nn.Module:
    """A network by its name, ``cifar_resnet<depth>[_w<width>][_s2]``, with random weights."""
    match = CIFAR_RESNET.fullmatch(name)
    depth, width, stem = int(match[1]), int(match[2] or 16), 2 if match[3] else 1
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a cifar_resnet has depth 6n+2 (8, 14, 20, …), got {depth}")
    first = nn.Conv2d(channels, width, 3, stride=stem, padding=1, bias=False)
    layers = [first, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    inputs = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            outputs = width * 2**stage
            shortcut = None
            if stride == 2:
                convolution = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
                shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
            layers.append(torchvision.models.resnet.BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    net = nn.Sequential(*layers)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
