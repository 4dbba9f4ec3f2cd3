"""Probabilistic attention as layers: maths/em.py over batches and heads [PA section 3].

`ProbabilisticAttention` takes the place of flax.linen.MultiHeadDotProductAttention: the same call
and the same parameters, and what is new is optional: annotated tokens, precisions, and the steps of
EM that they drive.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gmm_diffusion.errors import UserError
from gmm_diffusion.maths import em
from gmm_diffusion.nets.blocks import GroupNorm, widen, zero_init
from gmm_diffusion.types import Array


class Annotations(NamedTuple):
  """values [..., I, F], as features like those that make values, and held [..., I]: 1 where a value
  is known, else 0."""

  values: Array
  held: Array


def attend(
  q: Array,
  k: Array,
  v: Array,
  *,
  mask: Array | None = None,
  bias: Array | None = None,
  held_values: Array | None = None,
  held: Array | None = None,
  alpha: Array | None = None,
  beta: Array | None = None,
  positions: em.Positions = em.Positions(),
  trust: em.Trust = em.Trust(),
  key_steps: int = 0,
  value_steps: int = 0,
  block: int = em.BLOCK,
) -> Array:
  """EM attention of q [B, I, H, C] over k [B, J, H, C], v [B, J, H, V] -> [B, I, H, V].

  Args:
    mask: bool [B, H or 1, I, J], True where a pair is open.
    bias: [B, H or 1, I, J], added to the log-priors.
    held_values, held: [B, I, H, V] and [B, I].
    alpha, beta: [H]; alpha None is 1 / sqrt(C), beta None is 0. The magnitude priors make
      dot-product attention of them.
    positions: of em.py, the same for all items; relative ones may have a leading axis H.
    trust: scalars or [H].
    key_steps, value_steps, block: see em.infer.
  """
  B, I, H, C = q.shape
  wide = lambda x, default: jnp.broadcast_to(
    jnp.asarray(default if x is None else x, jnp.promote_types(q.dtype, jnp.float32)), (H,)
  )
  alpha, beta, trust = (
    wide(alpha, C**-0.5),
    wide(beta, 0.0),
    em.Trust(*(wide(x, 1.0) for x in trust)),
  )
  if mask is not None:
    bias = jnp.where(mask, 0.0 if bias is None else bias, -jnp.inf)
  if bias is not None:
    bias = jnp.broadcast_to(bias, (B, H, I, k.shape[1]))

  def head(q, k, v, values, held, bias, alpha, beta, positions, trust):
    units = em.memory(widen(k), v, alpha, beta)
    log_priors, pair = em.magnitudes(units, positions)
    if pair is not None:
      bias = pair if bias is None else bias + pair
    return em.infer(
      units._replace(log_priors=log_priors),
      em.Tokens(q, values, held, bias),
      positions,
      trust,
      key_steps,
      value_steps,
      block=block,
    ).values

  per_head = [0 if x is not None and x.ndim == 4 else None for x in positions]
  of_head: Any = em.Positions(*per_head)  # type: ignore[arg-type]
  per_item = jax.vmap(head, (1, 1, 1, 1, None, 0, 0, 0, of_head, 0), 1)  # heads
  return jax.vmap(per_item, (0, 0, 0, 0, 0, 0, None, None, None, None))(
    q, k, v, held_values, held, bias, alpha, beta, positions, trust
  )


class Precisions(nn.Module):
  """alpha, beta [H] and the trust in keys and values [H]: learned as logarithms, or fixed at their
  start."""

  heads: int
  alpha: float
  beta: float
  trust_keys: float = 1.0
  trust_values: float = 1.0
  learned: bool = True

  @nn.compact
  def __call__(self) -> tuple[Array, Array, em.Trust]:
    def make(name, start):
      if not self.learned or start <= 0:
        return jnp.full((self.heads,), start)
      return jnp.exp(
        self.param('log_' + name, nn.initializers.constant(jnp.log(start)), (self.heads,))
      )

    return (
      make('alpha', self.alpha),
      make('beta', self.beta),
      em.Trust(make('trust_keys', self.trust_keys), make('trust_values', self.trust_values)),
    )


class ProbabilisticAttention(nn.Module):
  """Multi-head attention as inference in a mixture over memory units; flax's dot-product attention
  where nothing is set.

  Attributes:
    num_heads, dtype, param_dtype, qkv_features, out_features, kernel_init, bias_init, use_bias: as
      in flax.linen.MultiHeadDotProductAttention, whose parameters fit by name.
    alpha: precision of queries; None is 1 / sqrt(head width).
    beta: precision of values, 0 leaves annotations out of everything but their own output.
    trust_keys, trust_values: precision of the priors around keys and values.
    learned: whether the precisions are parameters, per head.
    key_steps, value_steps: iterations of key adaptation and value propagation.
    relative: learned relative positions along the tokens (as many queries as keys; weights are
      dense).
    block: tokens in flight.
  """

  num_heads: int
  dtype: Any = None
  param_dtype: Any = jnp.float32
  qkv_features: int | None = None
  out_features: int | None = None
  kernel_init: Any = nn.initializers.lecun_normal()
  bias_init: Any = nn.initializers.zeros_init()
  use_bias: bool = True
  alpha: float | None = None
  beta: float = 0.0
  trust_keys: float = 1.0
  trust_values: float = 1.0
  learned: bool = False
  key_steps: int = 0
  value_steps: int = 0
  relative: bool = False
  block: int = em.BLOCK

  @nn.compact
  def __call__(
    self,
    inputs_q: Array,
    inputs_k: Array | None = None,
    inputs_v: Array | None = None,
    *,
    mask: Array | None = None,
    deterministic: bool | None = None,
    dropout_rng: Array | None = None,
    sow_weights: bool = False,
    annotations: Annotations | None = None,
  ) -> Array:
    """[..., I, F] -> [..., I, out_features]; mask [..., heads or 1, I, J] is True where a pair is
    open."""
    del deterministic, dropout_rng  # there is no dropout
    if sow_weights:
      raise UserError('sow_weights=True: the weights are never held at once; valid: False')
    inputs_k = inputs_q if inputs_k is None else inputs_k
    inputs_v = inputs_k if inputs_v is None else inputs_v
    width = self.qkv_features or inputs_q.shape[-1]
    if width % self.num_heads:
      raise UserError(f'qkv_features {width} must be a multiple of num_heads {self.num_heads}')
    C = width // self.num_heads
    options = dict(
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      use_bias=self.use_bias,
    )
    dense = lambda name: nn.DenseGeneral((self.num_heads, C), name=name, **options)
    flat = lambda x: x.reshape((-1,) + x.shape[-3:])
    to_value = dense('value')
    q, k, v = flat(dense('query')(inputs_q)), flat(dense('key')(inputs_k)), flat(to_value(inputs_v))
    held_values = held = None
    if annotations is not None:
      known = annotations.held[..., None] > 0
      held_values = flat(to_value(jnp.where(known, annotations.values, 0)))
      held = annotations.held.reshape(-1, annotations.held.shape[-1])
    alpha, beta, trust = Precisions(
      self.num_heads,
      C**-0.5 if self.alpha is None else self.alpha,
      self.beta,
      self.trust_keys,
      self.trust_values,
      self.learned,
      name='precisions',
    )()
    if mask is not None:
      mask = flat(jnp.broadcast_to(mask, inputs_q.shape[:-2] + mask.shape[-3:]))
    out = attend(
      q,
      k,
      v,
      mask=mask,
      held_values=held_values,
      held=held,
      alpha=alpha,
      beta=beta,
      positions=self._positions(q, k),
      trust=trust,
      key_steps=self.key_steps,
      value_steps=self.value_steps,
      block=self.block,
    )
    out = out.reshape(inputs_q.shape[:-1] + out.shape[-2:])
    return nn.DenseGeneral(
      self.out_features or inputs_q.shape[-1], axis=(-2, -1), name='out', **options
    )(out)

  def _positions(self, q, k):
    if not self.relative:
      return em.Positions()
    I, J, C = q.shape[1], k.shape[1], q.shape[-1]
    if I != J:
      raise UserError(f'relative positions need as many queries as keys, got {I} and {J}')
    table = lambda name: self.param(
      name, nn.initializers.normal(C**-0.5), (self.num_heads, 2 * I - 1, C), self.param_dtype
    )
    difference = jnp.arange(I)[None] - jnp.arange(I)[:, None] + I - 1  # [from, to]
    return em.Positions(
      table('relative_query')[:, difference], table('relative_key')[:, difference]
    )


class AxialProbabilisticAttention(nn.Module):
  """Probabilistic attention along the rows, then along the columns of [B, H, W, F], with relative
  positions.

  options: of ProbabilisticAttention, the same for both.
  """

  num_heads: int
  options: Any = None

  @nn.compact
  def __call__(self, inputs: Array, *, annotations: Annotations | None = None) -> Array:
    """annotations: values [B, H, W, F] and held [B, H, W]."""
    layer = lambda name: ProbabilisticAttention(
      self.num_heads, relative=True, name=name, **(self.options or {})
    )
    turn = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), tree)
    x = layer('rows')(inputs, annotations=annotations)
    return turn(layer('columns')(turn(x), annotations=turn(annotations)))


class EMAttentionBlock(nn.Module):
  """Residual self-attention over all positions, as blocks.AttentionBlock, with learned precisions
  and one step of key adaptation."""

  heads: int
  eps: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    B, H, W, C = x.shape
    h = GroupNorm(self.dtype, self.eps, name='norm')(x).reshape(B, H * W, C)
    q, k, v = jnp.moveaxis(
      nn.Dense(3 * C, dtype=self.dtype, name='qkv')(h).reshape(B, H * W, 3, self.heads, -1), 2, 0
    )
    alpha, _, trust = Precisions(
      self.heads, (C // self.heads) ** -0.5, 0.0, trust_values=0.0, name='precisions'
    )()
    out = attend(q, k, v, alpha=alpha, trust=trust, key_steps=1).reshape(B, H * W, C)
    return x + nn.Dense(C, dtype=self.dtype, kernel_init=zero_init, name='proj_out')(out).reshape(
      x.shape
    )
