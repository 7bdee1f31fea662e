"""The architecture of the shipped example: a small MobileNetV2 (Sandler et al., 2018) for grey 14 x 14 pictures."""

from __future__ import annotations

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """Widen, filter every channel on its own, narrow; with a shortcut where the shapes allow it.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        stride: of the filter; 2 halves the picture.
        expansion: how much wider the middle is.

    Shapes: (N, channels_in, H, W) -> (N, channels_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        width = expansion * channels_in
        self.expand = nn.Conv2d(channels_in, width, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(width)
        self.expand_act = nn.ReLU()
        self.depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.depthwise_act = nn.ReLU()
        self.project = nn.Conv2d(width, channels_out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels_out)
        self.has_shortcut = stride == 1 and channels_in == channels_out

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, ceil(H / stride), ceil(W / stride))."""
        hidden = self.expand_act(self.expand_norm(self.expand(inputs)))
        hidden = self.depthwise_act(self.depthwise_norm(self.depthwise(hidden)))
        outputs: Tensor = self.project_norm(self.project(hidden))
        return outputs + inputs if self.has_shortcut else outputs


class ExampleCNN(nn.Module):
    """The network of :func:`qubo_compress.example_network`: 81,778 parameters in 15 layers with weights.

    A stem, four inverted residuals, a 1 x 1 convolution and one Linear layer. The layers differ by a factor of more
    than a hundred in size, and the small ones are sensitive: choosing for each layer matters.

    Args:
        classes: number of logits.

    Shapes: (N, 1, 14, 14) -> (N, classes).

    Example:
        >>> import torch
        >>> ExampleCNN()(torch.zeros(2, 1, 14, 14)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(24)
        self.stem_act = nn.ReLU()
        self.block1 = InvertedResidual(24, 32, stride=2)
        self.block2 = InvertedResidual(32, 32)
        self.block3 = InvertedResidual(32, 64, stride=2)
        self.block4 = InvertedResidual(64, 64)
        self.head = nn.Conv2d(64, 192, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(192)
        self.head_act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(192, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, 1, 14, 14) -> logits (N, classes)."""
        hidden = self.stem_act(self.stem_norm(self.stem(inputs)))
        hidden = self.block4(self.block3(self.block2(self.block1(hidden))))
        hidden = self.head_act(self.head_norm(self.head(hidden)))
        logits: Tensor = self.classifier(self.flatten(self.pool(hidden)))
        return logits
