"""Floating-point operations of the fused step, counted from its jaxpr.

A product of (m, k) by (k, n) counts 2 m k n; norms, softmax and the like are left out, and so are
recomputation (remat) and the optimizer: these are the FLOPs of model FLOPs utilisation (PaLM,
Chowdhery et al. 2022, appendix B). Attention is traced as XLA's: pairs that its mask hides count in
full, except keys of other blocks, which are never computed.
"""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.extend import core

from ldlm_jax.models.networks import LatentStats
from ldlm_jax.phases import Phase
from ldlm_jax.train_step import Frozen, Recipe, fused_loss


def _dot_flops(eqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)


def _inner(eqn):
    """The jaxprs inside an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def jaxpr_flops(jaxpr, branch_share: float) -> float:
    """FLOPs of the products of a jaxpr; the dearer branch of a condition runs ``branch_share``."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            total += _dot_flops(eqn)
            continue
        inner = [jaxpr_flops(part, branch_share) for part in _inner(eqn)]
        if eqn.primitive.name == "cond":
            total += branch_share * max(inner) + (1 - branch_share) * min(inner)
        else:
            total += eqn.params.get("length", 1) * sum(inner)
    return total


def step_flops(recipe: Recipe, frozen: Frozen, batch: dict, phase: Phase) -> float:
    """FLOPs of one training step, forward and backward, on all devices together.

    Args:
      recipe: see ``train_step``.
      frozen: what never learns, as arrays or shapes.
      batch: a global batch, as arrays or shapes.
      phase: the phase.
    """
    plain, networks = {"remat": "none", "attention": "xla"}, recipe.networks
    networks = replace(networks, vae=networks.vae.clone(**plain), dit=networks.dit.clone(**plain))
    teacher = recipe.teacher and replace(recipe.teacher, attention="xla")
    recipe = replace(recipe, networks=networks, teacher=teacher, logit_chunks=1)
    window = batch["tokens"].shape[1]
    params = jax.eval_shape(lambda: meta.unbox(networks.init(jax.random.key(0), window)))
    stats = jax.eval_shape(lambda: LatentStats.create(networks.vae.latent_channels))
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
    frozen, batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (frozen, dict(batch))
    )
    gradient = jax.grad(partial(fused_loss, phase=phase, recipe=recipe), has_aux=True)
    traced = jax.make_jaxpr(gradient)(params, batch, stats, key, step, frozen)
    return jaxpr_flops(traced.jaxpr, recipe.diffusion.self_condition)
