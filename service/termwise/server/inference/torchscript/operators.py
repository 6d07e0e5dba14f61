"""What a TorchScript model may compute with: operators by name, and nothing that is not here.

Left out on purpose: whatever reads or writes a file (`from_file`, `save`), waits for or starts other work (`fork`,
`rpc_*`), reaches memory that is not its own (`as_strided`, `set_`, `resize_`, `_unsafe_*`) or that nobody has written
(`empty` and its kin), or keeps something between two texts (`prim::SetAttr`).
"""

from __future__ import annotations

from typing import Final

_ARITHMETIC: Final = """
abs add addcdiv addcmul addmm baddbmm bmm ceil clamp clamp_max clamp_min clip cumprod cumsum div dot einsum erf erfc
exp expm1 floor floor_divide floordiv fmod frac ge gt eq ne le lt isclose isfinite isinf isnan linear log log10 log1p
log2 logaddexp logical_and logical_not logical_or logical_xor logsumexp lerp matmul maximum minimum mm mul multiply mv
neg negative norm pow reciprocal remainder round rsqrt rsub sigmoid sign sin cos tan sinh cosh tanh asin acos atan
atan2 sqrt square sub subtract trunc true_divide bitwise_and bitwise_not bitwise_or bitwise_xor bitwise_left_shift
bitwise_right_shift outer cdist cosine_similarity linalg_norm linalg_vector_norm nan_to_num heaviside hypot
"""
_ACTIVATIONS: Final = """
celu dropout alpha_dropout feature_dropout elu gelu glu hardsigmoid hardswish hardtanh leaky_relu log_sigmoid
log_softmax mish prelu relu relu6 rrelu selu silu softmax softplus softshrink threshold _softmax _log_softmax
"""
_LAYERS: Final = """
batch_norm conv1d conv2d _convolution convolution embedding group_norm instance_norm layer_norm native_layer_norm
max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d scaled_dot_product_attention rms_norm bilinear
constant_pad_nd pad
"""
_REDUCTIONS: Final = """
all any amax amin argmax argmin argsort bincount count_nonzero kthvalue max mean median min mode nonzero nonzero_numpy
prod sort std sum topk unique_consecutive _unique2 unique_dim var std_mean var_mean aminmax cummax cummin histc
searchsorted bucketize
"""
_SHAPES: Final = """
alias broadcast_tensors broadcast_to cat chunk concat contiguous detach diag diag_embed diagonal dstack expand
expand_as flatten flip hstack movedim narrow numel permute ravel repeat repeat_interleave reshape reshape_as roll
rot90 select size slice split split_with_sizes squeeze stack swapaxes swapdims t tile transpose tril triu tril_indices
triu_indices unbind unflatten unfold unsqueeze view view_as vstack clone dim numpy_T matrix_H mT tensor_split meshgrid
atleast_1d atleast_2d cartesian_prod is_contiguous is_floating_point is_complex sym_size stride storage_offset
broadcast_shapes
"""
_INDEXING: Final = """
gather index index_add index_copy index_fill index_put index_select masked_fill masked_scatter masked_select scatter
scatter_add scatter_reduce take take_along_dim where one_hot copy put isin
"""
_MAKING: Final = """
arange full full_like linspace logspace new_full new_ones new_zeros ones ones_like scalar_tensor tensor zeros
zeros_like eye as_tensor _shape_as_tensor to type_as float double half long int bool item result_type promote_types
can_cast lift_fresh lift_fresh_copy expand_copy _to_copy
"""
_CHANCE: Final = """
bernoulli manual_seed multinomial normal rand rand_like randint randint_like randn randn_like randperm uniform
exponential
"""
# The ones whose answer depends on the state of the process's random generator, or change it.
_TENSOR: Final = _ARITHMETIC + _ACTIVATIONS + _LAYERS + _REDUCTIONS + _SHAPES + _INDEXING + _MAKING + _CHANCE
# On numbers, strings, lists and dictionaries, and on their kinds.
_PLAIN: Final = """
Bool Float Int IntImplicit FloatImplicit ScalarImplicit Complex __and__ __or__ __xor__ __not__ __is__ __isnot__
__contains__ __getitem__ __derive_index __range_length __lshift__ __rshift__ __iand__ __ior__ __ixor__ _set_item
append extend insert pop remove reverse clear keys values items get update setdefault copy index count len list dict
format str ord chr hex bin oct lower upper strip lstrip rstrip split splitlines join replace startswith endswith find
rfind isdigit isalpha isspace warn is_grad_enabled is_autocast_enabled device divmod gcd factorial degrees radians
fabs modf frexp ldexp copysign sorted slice mathremainder
"""
_IN_PLACE: Final = """
abs add addcdiv addcmul addmm bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max clamp_min
copy cumsum detach div dropout elu eq erf exp exponential fill fill_diagonal floor gelu gt ge hardtanh index_add
index_copy index_fill index_put le leaky_relu lerp log log1p logical_and logical_not logical_or lt masked_fill
masked_scatter mul ne neg normal pow random reciprocal relu round rsqrt scatter scatter_add sigmoid silu sqrt square
squeeze sub t tanh transpose tril triu trunc uniform unsqueeze zero hardswish
"""

CHANCE: Final = frozenset(f"aten::{each}" for each in _CHANCE.split()) | {
    f"aten::{each}_" for each in ("bernoulli", "exponential", "normal", "random", "uniform")
}
"""Operators whose answer depends on the state of the process's random generator, or that change it."""
_PRIM: Final = """
Constant DictConstruct GetAttr If ImplicitTensorToNum ListConstruct ListUnpack Loop NumToTensor RaiseException
TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized abs data device dtype grad is_cpu is_cuda is_meta
is_mkldnn is_nested is_quantized is_sparse isinstance itemsize layout max min name ndim requires_grad shape tolist
type unchecked_cast unchecked_unwrap_optional rangelist EnumName EnumValue StringIndex
"""
ALLOWED: Final = (
    frozenset(f"aten::{each}" for each in (_TENSOR + _PLAIN).split())
    | {f"aten::{each}_" for each in _IN_PLACE.split()}
    | {f"prim::{each}" for each in _PRIM.split()}
    | {"aten::dequantize", "aten::quantize_per_tensor", "aten::q_scale", "aten::q_zero_point"}
    | {"quantized::linear_dynamic", "quantized::linear_relu_dynamic", "quantized::linear_dynamic_fp16"}
)
"""Operators that a model's `forward` may run."""
DORMANT: Final = frozenset(f"quantized::linear_{each}" for each in ("prepack", "prepack_fp16", "unpack", "unpack_fp16"))
"""What code beside `forward` may hold too: torch's own int8 layers carry it, and nobody runs it."""
