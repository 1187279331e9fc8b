"""Networks under several controls of one noisy sample, with their reference: what the controls share is computed once."""

from contextlib import nullcontext
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from legato import errors
from legato.diffusion.reference import adapters_off

UNKNOWN = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Options of a UNet that its forward pass reads and ours does not."""


class Encoded(NamedTuple):
    """What a UNet knows of a noisy sample before any control acts; all [B, ...]."""

    skips: tuple[Tensor, ...]
    middle: Tensor
    time: Tensor
    text: Tensor


@final
class ControlledUNet(nn.Module):
    """A frozen UNet2DConditionModel and a ControlNetModel of diffusers as one network, called as model(x, t, control=..., encoder_hidden_states=...).

    A ControlNet acts on the UNet's decoder alone, so its encoder and middle block are the same for winner and loser, policy and
    reference: they run once, without a graph. Outputs are those of diffusers, to the last bit under one control, to rounding under several.

    Args:
        unet: frozen here.
        controlnet: what is trained, as a whole or by its adapters (`add_lora(controlnet)`).
        reference: a frozen copy of the ControlNet at its start; None takes `controlnet` with its adapters off, without a copy.
    Raises: LegatoValueError for a UNet with conditions other than text.
    """

    def __init__(self, unet: nn.Module, controlnet: nn.Module, reference: nn.Module | None = None) -> None:
        super().__init__()
        config: Any = unet.config
        strange = [name for name in UNKNOWN if getattr(config, name, None) is not None]
        if strange or config.center_input_sample:
            raise errors.argument(
                "unet", expected="a UNet2DConditionModel that is told the time and a text", got=", ".join(strange) or "center_input_sample",
                fix="compare its conditions by condition_errors, which takes any network",
            )  # fmt: skip
        self.unet, self.controlnet = unet.requires_grad_(False), controlnet
        self.reference = None if reference is None else reference.requires_grad_(False)

    def forward(
        self, sample: Tensor, timestep: Tensor, control: Tensor, encoder_hidden_states: Tensor, reference: bool = False
    ) -> Any:
        """What the network predicts under each control.

        Args:
            sample: x_t [B, C, H, W].
            timestep: [B].
            control: [B, Cc, h, w], or K of them for each sample, [K, B, Cc, h, w].
            encoder_hidden_states: text [B, tokens, width].
            reference: also what the reference says, without a graph.
        Returns: [B, C, H, W] or [K, B, C, H, W]; with `reference` a pair of them.
        Raises: LegatoValueError for controls of another number or size.
        """
        controls = control if control.dim() == 5 else control[None]
        self._check(sample, controls)
        with torch.no_grad():
            encoded = self._encode(sample, timestep, encoder_hidden_states)
            said = self._under(controls, sample, timestep, encoded, of_reference=True) if reference else None
        policy = self._under(controls, sample, timestep, encoded)
        if control.dim() == 4:
            policy, said = policy[0], None if said is None else said[0]
        return policy if said is None else (policy, said)

    def _under(
        self, controls: Tensor, sample: Tensor, timestep: Tensor, encoded: Encoded, of_reference: bool = False
    ) -> Tensor:
        """[K, B, C, H, W] by one pass of K B rows through ControlNet and decoder."""
        count = len(controls)
        net: Any = self.reference if of_reference and self.reference is not None else self.controlnet
        with adapters_off(net) if of_reference and self.reference is None else nullcontext():
            residuals, middle = net(
                _rows(sample, count), _rows(timestep, count), encoder_hidden_states=_rows(encoded.text, count),
                controlnet_cond=controls.flatten(0, 1), return_dict=False,
            )  # fmt: skip
        out: Tensor = self._decode(encoded, residuals, middle, count).unflatten(0, (count, len(sample)))
        return out

    def _encode(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Encoded:
        """As UNet2DConditionModel of diffusers does it, up to where a ControlNet acts."""
        unet: Any = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        if unet.time_embed_act is not None:
            time = unet.time_embed_act(time)
        x = unet.conv_in(sample)
        skips: tuple[Tensor, ...] = (x,)
        for block in unet.down_blocks:
            x, more = block(hidden_states=x, temb=time, **_text(block, text))
            skips += more
        if unet.mid_block is not None:
            x = unet.mid_block(x, time, **_text(unet.mid_block, text))
        return Encoded(skips, x, time, text)

    def _decode(self, encoded: Encoded, residuals: Any, middle: Tensor, count: int) -> Tensor:
        """The other half, for `count` times as many rows."""
        unet: Any = self.unet
        skips = [_plus(skip, residual, count) for skip, residual in zip(encoded.skips, residuals, strict=True)]
        x, time, text = _plus(encoded.middle, middle, count), _rows(encoded.time, count), _rows(encoded.text, count)
        uneven = any(side % 2**unet.num_upsamplers for side in encoded.skips[0].shape[2:])
        for block in unet.up_blocks:
            here = tuple(skips[-len(block.resnets) :])
            del skips[-len(block.resnets) :]
            size = skips[-1].shape[2:] if uneven and skips else None
            x = block(
                hidden_states=x, temb=time, res_hidden_states_tuple=here, upsample_size=size, **_text(block, text)
            )
        if unet.conv_norm_out:
            x = unet.conv_act(unet.conv_norm_out(x))
        out: Tensor = unet.conv_out(x)
        return out

    def _check(self, sample: Tensor, controls: Tensor) -> None:
        if controls.dim() != 5 or controls.shape[1] != len(sample):
            raise errors.argument(
                "control", expected=f"[{len(sample)}, Cc, h, w], one a sample, or K times as many, [K, {len(sample)}, Cc, h, w]",
                got=list(controls.shape if controls.shape[0] != 1 else controls.shape[1:]),
            )  # fmt: skip
        hint: Any = self.controlnet.config
        stride = 2 ** (len(hint.conditioning_embedding_out_channels) - 1)
        sizes = [stride * side for side in sample.shape[2:]]
        if list(controls.shape[3:]) != sizes:
            raise errors.argument(
                "control", expected=f"size {sizes}: the hint encoder's stride {stride} times the sample's {list(sample.shape[2:])}",
                got=list(controls.shape[3:]), fix="resize the controls; conditioning_embedding_out_channels=(16,) has stride 1",
            )  # fmt: skip


@final
class ConcatenatedControl(nn.Module):
    """Any denoiser whose control is more channels of its input: network(cat[x, control], t, **condition).

    Called as `ControlledUNet` is; nothing is shared, so K controls are one pass of K B rows.

    Args:
        network: gives a tensor, a tuple that begins with it, or an output of diffusers.
        reference: a frozen copy at its start; None takes `network` with its adapters off.
    """

    def __init__(self, network: nn.Module, reference: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.reference = None if reference is None else reference.requires_grad_(False)

    def forward(
        self, sample: Tensor, timestep: Tensor, control: Tensor, reference: bool = False, **condition: Tensor
    ) -> Any:
        """Arguments and result as of `ControlledUNet`; control has the sample's height and width, condition is [B, ...] for each keyword."""
        controls = control if control.dim() > sample.dim() else control[None]
        count = len(controls)
        if controls.shape[1] != len(sample) or controls.shape[3:] != sample.shape[2:]:
            raise errors.argument(
                "control",
                expected=f"one a sample, or K of them, of size {list(sample.shape[2:])}",
                got=list(control.shape),
            )
        rows = torch.cat([_rows(sample, count), controls.flatten(0, 1)], 1)
        about = {name: _rows(value, count) for name, value in condition.items()}

        def said(net: nn.Module) -> Tensor:
            out = net(rows, _rows(timestep, count), **about)
            whole: Tensor = (out if isinstance(out, Tensor) else out[0]).unflatten(0, (count, len(sample)))
            return whole if controls is control else whole[0]

        if not reference:
            return said(self.network)
        with torch.no_grad(), adapters_off(self.network) if self.reference is None else nullcontext():
            before = said(self.network if self.reference is None else self.reference)
        return said(self.network), before


def _rows(part: Tensor, count: int) -> Tensor:
    """[B, ...] -> [K B, ...], all samples for the first control, then all for the next."""
    return part.repeat(count, *[1] * (part.dim() - 1))


def _plus(shared: Tensor, residual: Tensor, count: int) -> Tensor:
    """[B, ...] + [K B, ...] without K copies of the former."""
    total: Tensor = (shared + residual.unflatten(0, (count, len(shared)))).flatten(0, 1)
    return total


def _text(block: Any, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
