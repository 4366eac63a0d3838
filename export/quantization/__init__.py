"""int8 with the clamp in the quantisers: uint8 activations, int8 weights per channel, int32 biases, in QDQ form."""

from unit_fast.export.quantization.folds import Loss, choose_folds
from unit_fast.export.quantization.quantize import Quantized, quantize
from unit_fast.export.quantization.samples import check_samples
from unit_fast.export.quantization.structure import IntegerClamp, check_integer_clamps

__all__ = ["IntegerClamp", "Loss", "Quantized", "check_integer_clamps", "check_samples", "choose_folds", "quantize"]
