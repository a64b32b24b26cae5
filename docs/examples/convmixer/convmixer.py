"""ConvMixer: Patches Are All You Need? (Trockman and Kolter 2022, arXiv:2201.09792), as a backbone."""

from torch import Tensor, nn


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ConvMixer(nn.Module):
    """Images [B, 3, H, W] -> features [B, num_features]. Any H and W that are not smaller than a patch will do."""

    def __init__(self, image_size: int, width: int = 128, depth: int = 4, kernel_size: int = 5, patch_size: int = 4) -> None:
        super().__init__()
        self.num_features = width

        def block(convolution: nn.Conv2d) -> list[nn.Module]:
            return [convolution, nn.GELU(), nn.BatchNorm2d(width)]

        self.stem = nn.Sequential(*block(nn.Conv2d(3, width, patch_size, stride=patch_size)))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(*block(nn.Conv2d(width, width, kernel_size, groups=width, padding="same"))),
                    *block(nn.Conv2d(width, width, 1)),
                )
                for _ in range(depth)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean((2, 3))
