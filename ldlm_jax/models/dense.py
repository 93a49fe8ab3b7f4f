"""Matrix products, and the linear maps made of them.

Shape letters: M input width.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldlm_jax.models.kernels.cpu_matmul import bf16_matmul
from ldlm_jax.models.lowering import constrain, platform

DEFAULT_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def activation_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Dtype between products: ``dtype``, but fp32 on CPUs, whose vector units know no bf16."""
    return jnp.float32 if platform() == "cpu" else dtype


def matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``x (..., M)`` times ``w (M, ...)`` with factors in ``dtype``.

    On CPUs bf16 products go through ``kernels.cpu_matmul``; elsewhere this is a plain product.

    Returns:
      The product in ``activation_dtype(dtype)``.
    """
    if platform() != "cpu" or dtype != jnp.bfloat16:
        return jnp.tensordot(x.astype(dtype), w.astype(dtype), axes=1)
    flat = bf16_matmul(x.astype(jnp.float32).reshape(-1, x.shape[-1]), w.reshape(w.shape[0], -1))
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


# Logical axes of kernels along which a product itself is split. Along the others a kernel only lies
# on several devices, and is gather_kernel before it is used.
_SPLIT = ("heads", "mlp", "vocab")


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather_kernel(kernel: jax.Array, axes: tuple[str | None, ...], dtype: jnp.dtype) -> jax.Array:
    """A kernel as a product needs it, in its dtype, which halves what is sent.

    Said here, as the compiler for TPUs would otherwise cut products into small ones to hide the
    sending, which costs far more than it hides. Its gradient goes to where the kernel lies: summed
    and split at once, it is sent half as often as a whole sum.
    """
    kernel = kernel if platform() == "cpu" else kernel.astype(dtype)
    return constrain(kernel, *(axis if axis in _SPLIT else None for axis in axes))


def _gather_forward(kernel, axes, dtype):
    return gather_kernel(kernel, axes, dtype), jnp.zeros((), kernel.dtype)


def _gather_backward(axes, dtype, like, gradient):
    return (constrain(gradient, *axes).astype(like.dtype),)


gather_kernel.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def look_up(table_VxM: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows ``table_VxM[ids]``, of shape ``(*ids.shape, M)``, with a gradient summed in fp32.

    Thousands of positions can share a row. Summed in bf16 most of them would be rounded away; and
    GPUs have no addition in memory for bf16: on Sudoku, where all share nine rows, the sum took
    two thirds of a step (``experiments/accelerator/``).
    """
    return jnp.take(table_VxM, ids, axis=0)


def _look_up_forward(table_VxM, ids):
    return look_up(table_VxM, ids), (ids, table_VxM[:, :0])  # its rows and its dtype


def _look_up_backward(kept, dy):
    ids, like_Vx0 = kept
    zeros_VxM = jnp.zeros((len(like_Vx0), dy.shape[-1]), jnp.float32)
    return zeros_VxM.at[ids].add(dy.astype(jnp.float32)).astype(like_Vx0.dtype), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Dense(nn.Module):
    """Linear map without bias; ``axes`` are the logical names of the kernel's two dimensions."""

    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = DEFAULT_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x (..., in)`` to ``(..., features)``, in ``activation_dtype(dtype)``."""
        init = nn.with_logical_partitioning(self.kernel_init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        return matmul(x, gather_kernel(kernel, self.axes, self.dtype), self.dtype)


class ParallelDense(nn.Module):
    """Several linear maps of one input, on CPUs as a single product.

    The kernel is (in, maps, features), so that splitting ``features`` over devices keeps the parts
    of every map together, and Muon sees ``maps`` matrices.
    """

    maps: int
    features: int
    axes: tuple[str, str]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """Map ``x (..., in)`` to ``maps`` arrays ``(..., features)``, typed as ``Dense`` does."""
        init = nn.with_logical_partitioning(
            nn.initializers.variance_scaling(
                1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=2, batch_axis=1
            ),
            (self.axes[0], None, self.axes[1]),
        )
        shape = (x.shape[-1], self.maps, self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        kernel = gather_kernel(kernel, (self.axes[0], None, self.axes[1]), self.dtype)
        if platform() != "cpu":
            # What comes out of each is used by itself: cut out of one array it would be copied.
            return [matmul(x, kernel[:, i], self.dtype) for i in range(self.maps)]
        y = matmul(x, kernel, self.dtype)
        return [y[..., i, :] for i in range(self.maps)]


@jax.custom_vjp
def materialise_gradient(x: jax.Array) -> jax.Array:
    """The same, with a gradient that is written down before it is used.

    Two products use it; fused into both, what leads up to it would be computed for every tile of
    each, which takes a TPU longer than the products.
    """
    return x


def _materialise_forward(x):
    return x, None


def _materialise_backward(_, dx):
    return (dx if platform() == "cpu" else jax.lax.optimization_barrier(dx),)


materialise_gradient.defvjp(_materialise_forward, _materialise_backward)
