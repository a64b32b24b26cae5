"""Batch normalisation over the batch of all ranks, on any device (torch's SyncBatchNorm runs on GPUs only)."""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import Tensor, nn

from ssl_zoo.distributed import sum_over_ranks, world_size
from ssl_zoo.errors import UserError


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are those of the global batch, with exact gradients through the collectives."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch normalisation takes [B, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            x = input.to(torch.promote_types(input.dtype, torch.float32))
            axes = [0, *range(2, x.dim())]
            shape = [1, -1] + [1] * (x.dim() - 2)
            count = x.numel() // x.shape[1] * world_size()
            mean = sum_over_ranks(x.sum(axes)) / count
            centred = x - mean.view(shape)
            var = sum_over_ranks((centred * centred).sum(axes)) / count
            self._track(mean.detach(), var.detach() * count / max(count - 1, 1))
            x = centred * torch.rsqrt(var + self.eps).view(shape)
            if self.affine:
                x = x * self.weight.view(shape) + self.bias.view(shape)
        return x.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        m = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), m)
        self.running_var.lerp_(var.to(self.running_var.dtype), m)


class GlobalBatchNormAct(GlobalBatchNorm):
    """timm's BatchNormAct2d, which drops and activates after it has normalised."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


REPLACED: dict[type, type] = {
    nn.BatchNorm1d: GlobalBatchNorm,
    nn.BatchNorm2d: GlobalBatchNorm,
    nn.BatchNorm3d: GlobalBatchNorm,
    BatchNormAct2d: GlobalBatchNormAct,
}
DONE = {"cuda": (nn.SyncBatchNorm, SyncBatchNormAct)}


def synchronise(module: nn.Module, device_type: str) -> nn.Module:
    """Make every BatchNorm of `module` use the statistics of the global batch; parameters and their names stay."""
    known = (*REPLACED, *DONE.get(device_type, (GlobalBatchNorm, GlobalBatchNormAct)))
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for m in norms:  # one that computes in its own way would keep to its own rank, or be computed in another way
        if type(m) not in known and world_size() > 1:
            raise UserError(
                f"The backbone's {type(m).__name__} cannot use the statistics of the batch of all processes: "
                f"choose another backbone, or set method.sync_bn=false."
            )
    if device_type == "cuda":
        return convert_sync_batchnorm(module) if any(type(m) in REPLACED for m in norms) else module
    for m in norms:
        m.__class__ = REPLACED.get(type(m), type(m))
    return module


class GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are those of each of `groups` equal parts of the batch, as if each were on its own device."""

    groups: int

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape that torch's function takes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if input.shape[0] % self.groups:
            raise UserError(f"A batch of {input.shape[0]} cannot be cut into method.bn_groups={self.groups} parts: choose a multiple.")
        g, c = self.groups, input.shape[1]
        side_by_side = input.unflatten(0, (g, -1)).transpose(0, 1).flatten(1, 2)  # [B / g, g C, ...]: a group is a set of channels
        mean, var, weight, bias = (
            None if s is None else s.repeat(g) for s in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        out = F.batch_norm(side_by_side, mean, var, weight, bias, True, self.momentum or 0.0, self.eps)
        with torch.no_grad():
            for buffer, parts in ((self.running_mean, mean), (self.running_var, var)):
                if buffer is not None and parts is not None:
                    buffer.copy_(parts.view(g, c).mean(0))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out.unflatten(1, (g, c)).transpose(0, 1).flatten(0, 1)


def group_batchnorm(module: nn.Module, groups: int) -> nn.Module:
    """Make every BatchNorm of `module` use the statistics of `groups` parts of the batch; changes `module` and returns it."""
    if groups == 1:
        return module
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        raise UserError(f"method.bn_groups={groups} is for backbones with batch normalisation, and this one has none: set it to 1.")
    for m in module.modules():
        if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            m.__class__ = GroupedBatchNorm
            m.groups = groups  # type: ignore[assignment]
        elif isinstance(m, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"The backbone's {type(m).__name__} cannot take statistics over parts of a batch: set method.bn_groups=1.")
    return module
