"""Fields of a published config.json: those that are read, those with only one allowed value, and those without
effect."""

from collections.abc import Collection, Mapping
from typing import Any

from diffusion_jax.domains import shown
from diffusion_jax.errors import UserError

REQUIRED = object()
"""The default of a required field."""

_ABOUT = frozenset(
    (
        *(
            "_class_name",
            "_diffusers_version",
            "_name_or_path",
            "_commit_hash",
            "architectures",
            "transformers_version",
        ),
        *("model_type", "torch_dtype", "dtype", "initializer_factor", "initializer_range", "use_cache"),
    )
)
"""The name of a class, the author of a file, the initialisation of parameters before training."""
GENERATION = (
    *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id"),
    *("forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder", "label2id", "length_penalty"),
    *("max_length", "min_length", "n_positions", "no_repeat_ngram_size", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "output_attentions", "output_hidden_states", "output_past", "output_scores", "prefix"),
    *("problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict"),
    *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p"),
    *("torchscript", "typical_p", "use_bfloat16"),
)
"""Fields that `transformers` writes, or once wrote, into any config: for text generation, and for heads."""


def read_fields(
    config: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
    neutral: Mapping[str, Collection[Any]] | None = None,
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """The values of the fields in `read`; a field that is null or missing has its default there.

    Args:
      config: the content of config.json.
      read: fields and their defaults.
      neutral: fields with the values that are equivalent to the network here; None and a missing field are neutral too.
      ignored: fields that do not affect the network's function.

    Raises:
      UserError: a required field is missing, a field is unknown, or has a value that the network here does not support.
    """
    what = config.get("_class_name") or (config.get("architectures") or [config.get("model_type", "model")])[0]
    neutral = neutral or {}
    for name, value in config.items():
        if name in _ABOUT or name in ignored or name in read or value is None:
            continue
        if name not in neutral:
            raise UserError(f"config.json of {what} says {name} = {shown(value)}: there is no such field here")
        if value not in neutral[name]:
            wanted = " or ".join(shown(one) for one in neutral[name])
            raise UserError(f"config.json of {what} says {name} = {shown(value)}, here it is always {wanted}")
    found = {name: config.get(name) if config.get(name) is not None else default for name, default in read.items()}
    missing = [name for name, value in found.items() if value is REQUIRED]
    if missing:
        raise UserError(f"config.json of {what} does not say {', '.join(missing)}")
    for name, value in found.items():
        _check(what, name, value, read[name])
    return found


def _check(what: str, name: str, value: Any, default: Any) -> None:
    """Check that counts are above 0 and that a value has its default's type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if default is REQUIRED and number and value <= 0:
        raise UserError(f"config.json of {what} says {name} = {shown(value)}: it must be above 0")
    kinds = {bool: bool, int: int, float: int | float, str: str}
    kind = kinds.get(type(default))
    if kind is not None and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise UserError(f"config.json of {what} says {name} = {shown(value)}: it must be {type(default).__name__}")


def counted(config: Mapping[str, Any], *names: str) -> None:
    """Raise UserError if one of these fields is no whole number above 0."""
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise UserError(f"config.json says {name} = {shown(value)}: it must be a whole number above 0")
