"""Which values a field may have: its type from the annotation, its bounds from its name.

A field name has one meaning everywhere, so one table gives the bounds for each: a `dropout` is a share, a `depth` is at
least 1, in every part. `Registry.build` checks every argument of every part against this table, so a wrong value in a
config is an error of one line before anything starts. Every number must be finite unless its bounds name infinity. A
part that reads two fields checks the relation between them.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from diffusion_jax.errors import UserError

_LARGEST = 2**31 - 1  # for whole numbers without other bounds: devices hold them as int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """An interval of numbers; `above` and `below` leave out its ends."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    infinite: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number lies within."""
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return False
        return (value > self.low if self.above else value >= self.low) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low = f"above {_digits(self.low)}" if self.above else f"of at least {_digits(self.low)}"
        high = f"below {_digits(self.high)}" if self.below else f"of at most {_digits(self.high)}"
        ends = [end for end, given in ((low, self.low > -math.inf), (high, self.high < math.inf)) if given]
        return " and ".join(ends) + (", or infinity" if self.infinite else "")

    def interval(self) -> str:
        """The interval in mathematical notation, "[0, 1)"; "" if it contains every finite number."""
        if self == ANY:
            return ""
        ends = f"{_digits(self.low)}, {_digits(self.high)}"
        closed = not self.below and (self.high < math.inf or self.infinite)
        return f"{'(' if self.above or self.low == -math.inf else '['}{ends}{']' if closed else ')'}"


def _digits(value: float) -> str:
    whole = math.isfinite(value) and float(value).is_integer()
    return f"{int(value):,}" if whole else f"{value:g}"


ANY = Bounds()
POSITIVE = Bounds(low=0, above=True)
NOT_NEGATIVE = Bounds(low=0)
SHARE = Bounds(low=0, high=1)
SHARE_BELOW_1 = Bounds(low=0, high=1, below=True)
TIME = Bounds(low=0, high=1)
INNER_SHARE = Bounds(low=0, high=1, above=True, below=True)
SIZE = Bounds(low=1, high=2**20)  # the size of an array's axis
SIZE_OR_NONE = Bounds(low=0, high=2**20)  # 0: no such axis
DEPTH = Bounds(low=1, high=10_000)  # how often a network repeats something
STEPS = Bounds(low=1, high=10**9)
TO_INFINITY = Bounds(low=0, infinite=True)

_NAMES = (
    (SHARE, "dropout probability bootstrap instantaneous uniform_share top"),
    (SHARE_BELOW_1, "b1 b2 momentum decay initial_decay max_beta"),
    (TIME, "t_min t_max t_end least_time first_step least"),
    (INNER_SHARE, "beta_start beta_end table"),
    (
        POSITIVE,
        "sigma_data sigma_min sigma_max rho std shift tau a b c snr atol rtol beta_max s_restart_min s_restart_max",
    ),
    (POSITIVE, "final_norm_eps norm_eps mlp_ratio q time_scale rotary_theta huber scaling"),
    (
        NOT_NEGATIVE,
        "eps eta gamma weight_decay huber_scale k p omega kappa beta_min s_churn s_min s_noise offset penalty",
    ),
    (NOT_NEGATIVE, "weight cross_entropy_weight vb_weight vlb_weight diffusion_norm warmup minimum scale commitment"),
    (TO_INFINITY, "s_max maximum"),
    (ANY, "mean bias start end gamma_min gamma_max log_snr_min log_snr_max"),
    (SIZE, "base_channels hidden_size features head_channels conditioning_size image_size image_channels patch_size"),
    (SIZE, "channels size align_channels attention_resolutions norm_groups num_heads context_tokens out_channels"),
    (SIZE, "bottleneck count channel_multipliers noise_channel_multiplier norm_channels latent_channels data_channels"),
    (SIZE_OR_NONE, "augment_channels context_channels low_resolution_channels length num_classes context_start"),
    (SIZE_OR_NONE, "canvas_channels pooled_channels size_channels guidance_channels extra_channels num_noise_levels"),
    (SIZE, "num_sizes control_channels embedding_channels table_span mlp_size modulation_size rotary_dims"),
    (SIZE_OR_NONE, "table_size rotary_sections"),
    (DEPTH, "depth num_res_blocks transformer_depth scan_unroll"),
    (Bounds(low=0, high=10_000), "single_depth dual_blocks skipped_blocks"),
    (Bounds(low=0, high=10_000), "align_depth frequency_shift num_corrections num_restarts"),
    (Bounds(low=1, high=2), "num_times"),
    (Bounds(low=1, high=4), "solver_order"),
    (Bounds(low=0, high=4), "predictor_order corrector_order"),
    (STEPS, "num_train_steps total_steps steps max_steps inner_steps doubling base_steps solver_steps every history"),
    (Bounds(low=0, high=10**6), "num_steps"),
    (Bounds(low=2, high=2**24), "first last levels bins num_tokens num_values num_codes"),
    (STEPS, "neighbours num_subsets subset_size splits max_real max_train max_test max_held_out num_examples"),
    (Bounds(low=0, high=2**32 - 1), "seed"),
    (Bounds(low=-1, high=2**20), "data fsdp tensor context"),
)
BOUNDS: Mapping[str, Bounds] = {name: bounds for bounds, names in _NAMES for name in names.split()}
"""The bounds for numbers of each name. A part with narrower bounds states them itself."""


@functools.lru_cache(maxsize=1024)
def annotations(factory: Callable[..., Any]) -> Mapping[str, Any]:
    """The type of every argument of a factory, resolved."""
    hints = typing.get_type_hints(factory.__init__ if isinstance(factory, type) else factory, include_extras=True)
    return {name: hints.get(name, Any) for name in inspect.signature(factory).parameters}


def bounds_of(kind: Any, by_name: Bounds | None = None) -> Bounds:
    """The bounds in the annotation itself, if there are any; otherwise the bounds for the name."""
    inside = [part for part in typing.get_args(kind) if isinstance(part, Bounds)]
    return inside[0] if typing.get_origin(kind) is typing.Annotated and inside else by_name or ANY


def type_text(kind: Any) -> str:
    """A type as people write it: "int", "float | None", "tuple[str, ...]", "'min' | 'max'"; a part is "part"."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_text(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_text, parts)))
    if origin is Literal:
        return " | ".join(map(repr, parts))
    if origin is tuple:
        return f"tuple[{', '.join('...' if part is ... else type_text(part) for part in parts)}]"
    if kind in (type(None), None):
        return "None"
    return kind.__name__ if kind in (bool, int, float, str, tuple) else "part"


def domain_text(kind: Any, bounds: Bounds) -> str:
    """The interval for the numbers of a type; "" if it has none, or if every finite number is allowed."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    numeric = kind in (int, float) or any(domain_text(part, POSITIVE) for part in parts if origin is not Literal)
    return bounds.interval() if numeric else ""


def check_arguments(what: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise UserError for the first argument with a wrong type or outside its bounds."""
    known = annotations(factory)
    for name, value in arguments.items():
        check(f"{what}: {name}", value, known.get(name, Any), BOUNDS.get(name))


def check(name: str, value: Any, kind: Any, bounds: Bounds | None = None) -> None:
    """Check a value against a type and bounds; values that a config cannot hold, such as arrays and parts, are not
    checked.

    Raises:
      UserError: it does not fit; the message names the value and what would fit.
    """
    problem = _problem(value, kind, bounds or ANY)
    if problem:
        raise UserError(f"{name} must be {problem}, it is {shown(value)}{_near(value, kind)}")


def _problem(value: Any, kind: Any, bounds: Bounds) -> str:
    """What the value should be; "" if it is valid."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _problem(value, parts[0], next((p for p in parts[1:] if isinstance(p, Bounds)), bounds))
    if origin in (typing.Union, types.UnionType):
        found = [_problem(value, part, bounds) for part in parts]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if kind is type(None):
        return "" if value is None else "None"
    if origin is Literal:
        return "" if any(value == part and type(value) is type(part) for part in parts) else _choices(parts)
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind in (int, float):
        return _number(value, kind, bounds)
    if kind is str:
        fits = isinstance(value, str) and "\0" not in value and len(value) < 4096
        return "" if fits or (not is_plain(value) and not isinstance(value, str)) else "a short text"
    if origin is tuple and isinstance(value, tuple | list):
        kinds = [parts[0]] * len(value) if parts[-1:] == (...,) else list(parts)
        if len(kinds) != len(value):
            return f"{len(kinds)} values"
        found = [_problem(one, part, bounds) for one, part in zip(value, kinds, strict=True)]
        return next((f"a tuple, each value {problem}" for problem in found if problem), "")
    if origin is tuple:
        return "a tuple" if is_plain(value) else ""
    return ""


def _number(value: Any, kind: type, bounds: Bounds) -> str:
    what = f"{'a whole number' if kind is int else 'a number'} {bounds}".strip()
    if not is_plain(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return what
    if kind is int and abs(value) > max(_LARGEST, bounds.high if bounds.high < math.inf else 0):
        return f"{what} that fits 32 bits"
    try:
        return "" if bounds.holds(float(value)) else what
    except OverflowError:
        return what


def is_plain(value: Any) -> bool:
    """Whether a config may hold such a value: no array, part or function."""
    plain = isinstance(value, numbers.Number | str | bytes | tuple | list)
    return value is None or plain or hasattr(value, "keys")  # a mapping, or a group of a config


def _choices(parts: tuple[Any, ...]) -> str:
    texts = [repr(part) for part in parts]
    return " or ".join(part for part in (", ".join(texts[:-1]), texts[-1]) if part)


def _near(value: Any, kind: Any) -> str:
    """A hint at the most similar of the names that the type lists."""
    names = [part for part in typing.get_args(kind) if isinstance(part, str)]
    near = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """A value in one line of at most 300 characters."""
    text = " ".join(repr(value.to_dict() if hasattr(value, "to_dict") else value).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
