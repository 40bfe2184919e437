"""Settings and sources of a training run, as plain data. No torch."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from treespec.data.slices import DatasetSlice
from treespec.errors import SettingsError, counted, listed

if TYPE_CHECKING:
    from treeopt.training.losses import Loss

FREE = ("eval_steps", "save_steps", "save_limit", "text_batch", "skip_bad_rows")
"""Settings and sources that may change from call to call of one run, since they do not decide what is trained."""

MAX_SEED = 2**32 - 1
"""Largest seed that NumPy takes."""

DEFAULT_STEPS = 1000
"""Steps of a run for which neither steps nor epochs are given."""

KINDS = ("eagle3", "medusa", "dflash")
DEFAULT_LEVELS = {"eagle3": 7, "medusa": 5, "dflash": 7}
"""Levels of each kind of head, if none are given: those of the authors of EAGLE-3, the most that those of Medusa found worth it, and half of the
blocks of 16 of DFlash's authors."""

OBJECTIVES = ("ce", "distill")
DIVERGENCES = ("forward-kl", "reverse-kl", "sampled-ce")
TEXTS = ("own", "target")
_DTYPES = ("auto", "float32", "bfloat16")

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama-68m": _LLAMA | {"num_hidden_layers": 2},
    "llama-160m": _LLAMA | {"num_hidden_layers": 12},
}
"""The drafts of SpecInfer (Miao et al., arXiv 2305.09781), as JackFram/llama-68m and llama-160m have them on the hub. The vocabulary, in
theirs 32,000 tokens, is the target's.
"""


@dataclass(frozen=True)
class TrainSources:
    """The models and rows of a training run. Exactly one is given of `draft` (folder or hub id), `config` (a name in CONFIGS or a JSON file) and `kind`.

    `kind` is that of a head of the target's sizes, which is trained for `levels` levels (None for those of DEFAULT_LEVELS). With
    `draft_vocabulary` an EAGLE-3 head has draft tokens of its own, so many of the most frequent ones of the texts.
    `num_rows` bounds the rows to train on. Acceptance is measured on the first rows of the data set, which are then left out
    of training, or on rows of `eval_dataset`. `field` and `eval_field` name the key of a data set's text if it is no usual one.
    """

    target: str
    dataset: str
    draft: str | None = None
    config: str | None = None
    kind: str | None = None
    levels: int | None = None
    draft_vocabulary: int | None = None
    revision: str | None = None
    draft_revision: str | None = None
    start: int = 0
    end: int | None = None
    num_rows: int = 10_000
    eval_dataset: str | None = None
    field: str | None = None
    eval_field: str | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("draft", "config", "kind") if getattr(self, name) is not None]
        if len(given) != 1:
            also = f" ({' and '.join(f'`{name}`' for name in given)} are given)" if given else ""
            raise SettingsError(
                f"pass exactly one of `draft`, a model to train further, `config`, the shape of a new one, and `kind`, that of a new head{also}"
            )
        self._check_head()
        _require_least(1, num_rows=self.num_rows)
        _ = self.training_rows  # checks `start` and `end`
        if self.eval_dataset is None:
            if self.eval_field is not None:
                raise SettingsError("`eval_field` is for `eval_dataset`; rows of `dataset` have their text under `field`")
            return
        from treespec.data.sources import same_dataset

        if same_dataset(self.eval_dataset, self.dataset):
            raise SettingsError(f"`eval_dataset` {self.eval_dataset} is trained on; leave it out, and its first rows are held out")

    def _check_head(self) -> None:
        """Raise SettingsError for a kind of head that is not trained, and for options of another kind."""
        if self.kind is not None and self.kind not in KINDS:
            raise SettingsError(f"`kind` is {self.kind!r}, but heads of the kinds {listed(KINDS)} alone are trained")
        for name in ("levels", "draft_vocabulary"):
            if self.kind is None and getattr(self, name) is not None:
                raise SettingsError(
                    f"`{name}` is for heads; pass `kind` ({', '.join(KINDS)}) in place of `draft` and `config`, or leave it out"
                )
        if self.kind not in (None, "eagle3") and self.draft_vocabulary is not None:
            raise SettingsError("`draft_vocabulary` is for `kind` eagle3: other heads propose all tokens of their target; leave it out")
        if self.kind is not None:
            _require_least(1, levels=self.trained_levels)
        if self.draft_vocabulary is not None:
            _require_least(1, draft_vocabulary=self.draft_vocabulary)

    @property
    def trained_levels(self) -> int:
        """Levels that a head is trained for."""
        assert self.kind is not None
        return DEFAULT_LEVELS[self.kind] if self.levels is None else self.levels

    @property
    def training_rows(self) -> DatasetSlice:
        """The rows to train on and, without an `eval_dataset`, the held-out ones."""
        return DatasetSlice(self.dataset, self.field, self.start, self.end, self.skip_bad_rows)

    @property
    def eval_rows(self) -> DatasetSlice | None:
        """The rows to measure acceptance on, if they are of another data set."""
        return None if self.eval_dataset is None else DatasetSlice(self.eval_dataset, self.eval_field, skip_bad_rows=self.skip_bad_rows)


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run: the loss, the text and the length. Lengths are in tokens; `batch_size` is rows per process and pass.

    `ce` is cross-entropy with the data set's text. `distill` lowers a divergence from the target, at `temperature`, on the
    data set's text (`own`) or on the target's continuations of its rows (`target`, sampled at `text_temperature`);
    `sampled-ce` is cross-entropy with these continuations. Give `steps` or `epochs`, not both; without either, DEFAULT_STEPS are run.
    """

    objective: Literal["ce", "distill"] = "distill"
    divergence: Literal["forward-kl", "reverse-kl", "sampled-ce"] = "forward-kl"
    text: Literal["own", "target"] = "own"
    temperature: float = 1.0
    text_temperature: float = 1.0
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    gradient_accumulation: int = 1
    seq_len: int = 512
    learning_rate: float = 3e-4
    warmup: float = 0.05
    """Share of the steps, or a number of them from 1 on; then the rate follows a cosine down to 0."""
    dtype: str = "auto"
    """Number type of the arithmetic: float32, bfloat16 (autocast), or auto: bfloat16 on a GPU that has it. Trained weights are float32."""
    eval_prompts: int = 64
    prompt_len: int = 128
    gen_len: int = 128
    eval_steps: int = 100
    save_steps: int = 100
    save_limit: int = 2
    text_batch: int = 32
    seed: int = 0

    @classmethod
    def of(cls, *, objective: str = "distill", divergence: str | None = None, text: str | None = None, **others: Any) -> "TrainSettings":
        """Return settings in which those that are None were not given. Raises SettingsError for one that was given and changes nothing."""
        texts = text or ("target" if divergence == "sampled-ce" else "own")
        temperatures = {name: others.pop(name, None) for name in ("temperature", "text_temperature")}
        given = {name: value for name, value in {"divergence": divergence, "text": text, **temperatures}.items() if value is not None}
        if objective == "ce" and given:
            raise SettingsError(f"`{next(iter(given))}` is for `objective` distill: ce learns the data set's own text")
        if divergence == "sampled-ce" and "temperature" in given:
            raise SettingsError("`divergence` sampled-ce compares no distributions; `text_temperature` is that of the samples")
        if texts == "own" and "text_temperature" in given:
            raise SettingsError("`text_temperature` is that of the target's texts; pass `text` target as well")
        return cls(objective=objective, **{**given, "text": texts}, **others)  # type: ignore[arg-type]  # checked there

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("divergence", DIVERGENCES), ("text", TEXTS)):
            if getattr(self, name) not in known:
                raise SettingsError(f"`{name}` is {getattr(self, name)!r}, but it must be one of {', '.join(known)}")
        _require_least(1, batch_size=self.batch_size, gradient_accumulation=self.gradient_accumulation, prompt_len=self.prompt_len)
        _require_least(1, eval_steps=self.eval_steps, save_steps=self.save_steps, save_limit=self.save_limit, text_batch=self.text_batch)
        _require_least(0, eval_prompts=self.eval_prompts, warmup=self.warmup, text_temperature=self.text_temperature)
        if self.steps is not None and self.epochs is not None:
            raise SettingsError(
                f"training ends after {counted(self.steps, 'step')} or {counted(self.epochs, 'epoch', form='g')}; pass one of `steps` and `epochs`"
            )
        if (self.steps is not None and self.steps < 1) or (self.epochs is not None and self.epochs <= 0):
            raise SettingsError("there is nothing to train: `steps` must be 1 or more, `epochs` more than 0")
        if self.seq_len < 2 or self.gen_len < 2:
            raise SettingsError(f"`seq_len` {self.seq_len} and `gen_len` {self.gen_len} must be 2 or more: a first token is never drafted")
        for name, value in (("temperature", self.temperature), ("learning_rate", self.learning_rate)):
            if value <= 0:
                raise SettingsError(f"`{name}` is {value}, but it must be more than 0")
        if self.epochs is None and self.warmup_steps(self.most_steps) >= self.most_steps:
            raise SettingsError(f"`warmup` {self.warmup:g} takes all of the {counted(self.most_steps, 'step')}; lower it, or raise `steps`")
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingsError(f"`seed` is {self.seed}, but it must be 0 to {MAX_SEED}")
        if self.dtype not in _DTYPES:
            raise SettingsError(
                f"`dtype` is {self.dtype}, but training runs in float32 or bfloat16: float16 overflows without loss scaling"
            )
        if self.objective == "ce" and self.text == "target":
            raise SettingsError("cross-entropy with the target's text is `objective` distill with `divergence` sampled-ce")
        if self.objective == "distill" and self.divergence == "sampled-ce" and self.text == "own":
            raise SettingsError("`divergence` sampled-ce learns the target's own samples; pass `text` target, or leave `text` out")
        if self.text == "target" and self.seq_len <= self.prompt_len:
            raise SettingsError(
                f"`seq_len` {self.seq_len} leaves nothing to write after `prompt_len` {self.prompt_len}; "
                f"pass `seq_len` {self.prompt_len + 2} or more"
            )

    @property
    def most_steps(self) -> int:
        """Number of steps of a run that is not bounded by epochs."""
        return self.steps or DEFAULT_STEPS

    def warmup_steps(self, steps: int) -> int:
        """Return how many of `steps` steps come before the peak learning rate; a share leaves at least one step after them."""
        return int(self.warmup) if self.warmup >= 1 else min(math.ceil(steps * self.warmup), steps - 1)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data, without those that cross-entropy with the data set's text does not use."""
        unused = ("divergence", "temperature", "text_temperature") if self.objective == "ce" else ()
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def loss(self) -> "Loss":
        """Name of the loss that is computed at each position."""
        return cast("Loss", self.divergence) if self.objective == "distill" and self.divergence != "sampled-ce" else "ce"


def _require_least(least: int, **settings: float) -> None:
    """Raise SettingsError for a setting below `least`."""
    for name, value in settings.items():
        if value < least:
            raise SettingsError(f"`{name}` is {value}, but it must be {least} or more")
