"""OpenVINO's arithmetic on x86-64, with float32 as the precision of inference.

Every QuantizeLinear is a FakeQuantize there: between `l = s (0 - z)` and `h = s (255 - z)`

    factor = 255 / (h - l),   shift = -255 l / (h - l),   q = clip(rint(fma(v, factor, shift)))

all in float32 in this order; where factor or shift differ between channels, `v * factor` is rounded before `shift` is
added. What stands before it is multiplied into it, or not:

- conv: `v = float32(acc d) + b`, `acc` the exact sum without bias, `d = s_x s_w`, `b` the bias dequantized. Without a
  bias `v = acc`, and `l / d`, `h / d` take the places of `l`, `h`; the shift is that of the first channel.
- gemm: with a bias `v = acc`, `factor d` and `float32(b factor) + shift`. Without, as conv; and where `z_x` is not
  0, `v = sum x w` and `l / d + z_x sum w`, `h / d + z_x sum w`.
- add: one operand is rescaled to the other's scale: with `M = s_f / s_e`, `Z = z_f + z_e s_e / s_f`, `v` is
  `(q_f - Z) M + q_e`, and `l / s_e`, `h / s_e` are the interval. Where nothing else reads the rescaled operand, it is
  `fma(q_f, g, -Z M)`, `g = ((255 - Z) M + Z M) / 255`. A convolution that computes the sum does not round `q_f`.
- global mean: `v = sum x / n`; mean over windows: `v = sum x * (1 / n)`. `l / s_x` and `h / s_x` are the interval and
  the shift is `shift - z_x factor`.

Where a convolution or gemm (or a convolution with its sum) gives codes of zero point 0 that nothing bounds, with one
factor for all channels, the factor is `1 / (1 / factor)`.

Source: https://github.com/openvinotoolkit/openvino (dnnl_postops_composer.cpp, fake_quantize.cpp, add.cpp), and tests
against its kernels at scales that put sums on the middle between two codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.errors import UnsupportedError
from bitwright.execute.attributes import ints
from bitwright.execute.kernels.parts import Parts, exact_carrier, furthest
from bitwright.execute.kernels.sums import FREE, Sum
from bitwright.execute.kernels.weighted import bias_scale, quantized_bias
from bitwright.execute.nodes import attributes_of, op_function
from bitwright.plan.encoding import Encoding

#: Shifts of channels that differ by less are taken for one.
SAME_SHIFT = 5e-5
#: A shift that is smaller than this part of the range is left out.
NO_SHIFT = 1e-5


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a b + c`, rounded once to float32: in float64 the product is exact."""
    return (a.double() * b.double() + c.double()).float()


def interval(encoding: Encoding) -> tuple[Tensor, Tensor]:
    """The real values of codes 0 and 255."""
    s, z = encoding.scale, encoding.zero_point.float()
    return s * (0.0 - z), s * (255.0 - z)


def factor_and_shift(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and shift of a FakeQuantize between two reals."""
    width, codes = high - low, torch.full_like(low, 255.0)
    return codes / width, -low * codes / width  # torch makes `number / tensor` a product with the reciprocal


class FakeQuantize(nn.Module):
    """`clip(rint(v factor + shift))`, as far as OpenVINO rounds in between."""

    factor: Tensor
    shift: Tensor

    def __init__(self, factor: Tensor, shift: Tensor, bounds: tuple[int, int] | None, channel: int = 1) -> None:
        super().__init__()
        if shift.ndim and bool(((shift - shift[0]).abs() < SAME_SHIFT).all()):
            shift = shift[0]
        if factor.ndim and bool((factor == factor[0]).all()):
            factor = factor[0]
        self.fused = not factor.ndim and not shift.ndim
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self.bounds, self.channel = bounds, channel

    def place(self, v: Tensor) -> Tensor:
        """Where values lie among the codes, not rounded."""
        factor, shift = (_along(t, v, self.channel) for t in (self.factor, self.shift))
        return fma(v, factor, shift) if self.fused else v * factor + shift

    def forward(self, v: Tensor) -> Tensor:
        """Codes."""
        assert self.bounds is not None
        return torch.round(self.place(v)).clamp_(*self.bounds).to(torch.uint8)


def _along(t: Tensor, like: Tensor, channel: int) -> Tensor:
    if not t.ndim:
        return t
    shape = [1] * like.ndim
    shape[channel] = -1
    return t.reshape(shape)


class Quantize(nn.Module):
    """Real values to codes: the entrance of an integer region."""

    low: Tensor
    high: Tensor

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        low, high = interval(encoding)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        grid = encoding.spec.grid
        self.quantize = FakeQuantize(*factor_and_shift(low, high), (grid.qmin, grid.qmax))

    def forward(self, x: Tensor) -> Tensor:
        """Codes."""
        codes: Tensor = self.quantize(torch.clamp(x, self.low, self.high))
        return codes


class Weighted(nn.Module):
    """Convolution or gemm on codes."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        region = parts.region
        assert region.weight is not None
        x, weight = parts.x, parts.encoding(region.weight)
        codes = weight.codes_of(parts.tensor(region.weight))
        self.op, self.attributes = op_function(region.op.op_type), attributes_of(region.op)
        centred = weight.integers(codes).double()
        axis = weight.spec.axis if weight.spec.axis is not None else 0
        per_channel = centred.movedim(axis, 0).flatten(1)
        self.carrier = exact_carrier(float(per_channel.abs().sum(1).max()) * max(furthest(x), 255))
        self.channel = 1
        self.zero_point = int(x.zero_point)
        scale = bias_scale(x, weight)
        self.register_buffer("weight", centred.to(self.carrier))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", _real_bias(parts, x, weight))
        low, high = interval(parts.y)
        if region.op.op_type == "Gemm":
            made = self._gemm(low, high, per_channel.sum(1).float())
        elif self.bias is None:
            made = factor_and_shift(low / scale, high / scale)
            made = made[0], made[1].reshape(-1)[0]
        else:
            made = factor_and_shift(low, high)
        absorbed = parts.absorbed
        self.summand = None if absorbed is None else _Summand(parts, absorbed, made)
        self.quantize = FakeQuantize(*_of_onednn(parts, made), parts.bounds)

    def _gemm(self, low: Tensor, high: Tensor, of_ones: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and shift of a gemm; with `z_x` and no bias, those of the sums that are not centred."""
        scale = self.scale
        if self.bias is None:
            offset = self.zero_point * of_ones
            low, high = low / scale, high / scale
            return factor_and_shift(low + offset, high + offset) if self.zero_point else factor_and_shift(low, high)
        factor, shift = factor_and_shift(low, high)
        shift = shift + self.bias * factor
        return (factor if self._scales_first else factor * scale), shift

    @property
    def _scales_first(self) -> bool:
        """Whether sums are multiplied by one scale in a step of their own, because the zero point came before."""
        one = not self.scale.ndim or bool((self.scale == self.scale.reshape(-1)[0]).all())
        return one and self.zero_point != 0 and self.bias is not None

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the output; or, where its kernel computes a sum, what it adds to the other operand's codes."""
        is_gemm = self.op is op_function("Gemm")
        centre = 0 if is_gemm and self.bias is None else self.zero_point
        v = self.op(x.to(self.carrier) - centre, self.weight, None, **self.attributes).float()
        if is_gemm:
            v = v * self.scale.reshape(-1)[0] if self._scales_first else v
        elif self.bias is not None:
            v = v * _along(self.scale, v, self.channel) + _along(self.bias, v, self.channel)
        y: Tensor = self.quantize(v) if self.summand is None else self.summand(v)
        return y


def _of_onednn(parts: Parts, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factor and shift as a kernel of oneDNN has them: a factor that stands alone is a scale of the output."""
    factor, shift = made
    alone = parts.bounds == FREE and parts.region not in parts.ends and not bool(shift.any())
    one = not factor.ndim or bool((factor == factor[0]).all())
    return (1.0 / (1.0 / factor), shift) if alone and one else made


def _real_bias(parts: Parts, x: Encoding, weight: Encoding) -> Tensor | None:
    region = parts.region
    if region.bias is None:
        return None
    read = parts.bias_codes(region.bias)
    codes = quantized_bias(parts.tensor(region.bias), x, weight) if read is None else read
    return codes.float() * bias_scale(x, weight)


class _Rescale(nn.Module):
    """The rescaled operand of a sum, in steps of the other."""

    def __init__(self, full: Encoding, empty: Encoding, *, at_once: bool) -> None:
        super().__init__()
        z_full, z_empty = full.zero_point.float(), empty.zero_point.float()
        self.centre = z_full + z_empty * empty.scale / full.scale
        self.ratio = full.scale / empty.scale
        self.shift = (0.0 - self.centre) * self.ratio
        self.factor = ((255.0 - self.centre) * self.ratio - self.shift) / torch.tensor(255.0)
        self.at_once = at_once

    def forward(self, q: Tensor) -> Tensor:
        """`q`, codes or places among them, in steps of the other operand."""
        q = q.float()
        return fma(q, self.factor, self.shift) if self.at_once else (q - self.centre) * self.ratio


class _Summand(nn.Module):
    """What a convolution adds to the codes of the sum's other operand, without rounding it."""

    def __init__(self, parts: Parts, of: Sum, made: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        operands = [parts.encoding(v) for v in of.region.op.inputs if v is not None]
        self.bounds = parts.bounds
        rescaled = of.absorbing == of.rescaled
        full, empty = operands[of.rescaled], operands[1 - of.rescaled]
        self.rescale = _Rescale(full, empty, at_once=of.at_once) if rescaled else None
        self.low, self.high = 0.0, 255.0
        if self.rescale is not None and self.bounds == FREE and of.at_once:  # one step of quantizing and rescaling
            factor, shift = made
            made = factor * self.rescale.factor, shift * self.rescale.factor + self.rescale.shift
            ends = (0.0 * self.rescale.factor + self.rescale.shift, 255.0 * self.rescale.factor + self.rescale.shift)
            self.low, self.high = (float(e) for e in ends)
            self.rescale = None
            if float(made[1].abs()) < (self.high - self.low) * NO_SHIFT:  # so it is where `z_e` is 0
                made = made[0], torch.zeros(())
        self.quantize = FakeQuantize(*made, None)

    def forward(self, v: Tensor) -> Tensor:
        """Steps of the other operand, float32."""
        q = self.quantize.place(v).clamp(self.low, self.high)
        if self.bounds != FREE:
            q = q.clamp(*self.bounds)
        return q if self.rescale is None else self.rescale(q)


class Add(nn.Module):
    """Sum of two activations."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        of = parts.sums[parts.region]
        operands = [parts.encoding(v) for v in parts.region.op.inputs if v is not None]
        full, empty = operands[of.rescaled], operands[1 - of.rescaled]
        self.first = of.rescaled
        absorbed = of.absorbing == of.rescaled
        self.rescale = None if absorbed else _Rescale(full, empty, at_once=of.at_once)
        low, high = interval(parts.y)
        factor, shift = factor_and_shift(low / empty.scale, high / empty.scale)
        made = factor, shift
        self.quantize = FakeQuantize(*(made if of.absorbing is None else _of_onednn(parts, made)), parts.bounds)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Codes of the sum."""
        full, empty = (a, b) if self.first == 0 else (b, a)
        rescaled = full.float() if self.rescale is None else self.rescale(full)
        y: Tensor = self.quantize(rescaled + empty.float())
        return y


def _of_means(parts: Parts) -> FakeQuantize:
    """From means of codes to codes."""
    x = parts.x
    low, high = interval(parts.y)
    factor, shift = factor_and_shift(low / x.scale, high / x.scale)
    return FakeQuantize(factor, shift + (0.0 - x.zero_point.float()) * factor, parts.bounds)


class GlobalAveragePool(nn.Module):
    """Mean over the plane."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.quantize = _of_means(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the means."""
        plane = x.flatten(2)
        mean = plane.sum(2, dtype=torch.int64).float() / plane.shape[2]
        codes: Tensor = self.quantize(mean)
        return codes.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


class AveragePool(nn.Module):
    """Mean over a sliding window; padding is not counted."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        attributes = attributes_of(parts.region.op)
        kernel = ints(attributes["kernel_shape"])
        self.size = 1
        for k in kernel:
            self.size *= k
        self.attributes = attributes | {"count_include_pad": 1}
        self.quantize = _of_means(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the means."""
        op = op_function("AveragePool")
        total = torch.round(op(x.double(), **self.attributes) * self.size)  # exact: a window has few elements
        count = torch.round(op(torch.ones_like(x[:1, :1]).double(), **self.attributes) * self.size)
        codes: Tensor = self.quantize(total.float() * (1.0 / count.float()))
        return codes


def weighted(parts: Parts) -> Weighted:
    """The kernel of a convolution or gemm with a constant weight."""
    return Weighted(parts)


def add(parts: Parts) -> Add:
    """The kernel of a sum.

    Raises:
        UnsupportedError: an operand is a constant.
    """
    if parts.region not in parts.sums:
        raise UnsupportedError(
            f"region {parts.region.name!r}", "adds a constant", "two activations", "quantize for an openvino target"
        )
    return Add(parts)


def global_average_pool(parts: Parts) -> GlobalAveragePool:
    """The kernel of a mean over the plane."""
    return GlobalAveragePool(parts)


def average_pool(parts: Parts) -> AveragePool:
    """The kernel of a mean over a sliding window.

    Raises:
        UnsupportedError: it counts padding, for which OpenVINO takes code 0, whatever the zero point.
    """
    attributes = parts.region.op.attributes
    if attributes.get_int("count_include_pad", 0) and any(attributes.get_ints("pads", ())):
        raise UnsupportedError(
            f"region {parts.region.name!r}", "counts padding", "count_include_pad=0", "quantize for an openvino target"
        )
    return AveragePool(parts)
