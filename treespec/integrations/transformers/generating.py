"""tree_generate: the `custom_generate` of transformers' `generate` that decodes with trees."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from treespec.data.tokens import unreadable
from treespec.decoding.drafting import Drafting, drafting_of
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import SlotModel
from treespec.decoding.sampling import prompt_generator
from treespec.errors import CapacityError, ModelError, SettingsError, counted
from treespec.files.reading import StrPath
from treespec.integrations.transformers.choosing import Choice, Stops, choice_of, for_row
from treespec.integrations.transformers.inputs import prompts_of, refuse
from treespec.integrations.transformers.keeping import Kept, kept_of
from treespec.models.pairs import Target
from treespec.models.positions import readable
from treespec.models.processed import Asking, ProcessedModel
from treespec.text.engines import engine_of
from treespec.trees.growmap import GrowMap
from treespec.trees.library import load_growmap

_LOG = logging.getLogger(__name__)


def tree_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: Sequence[Any] = (),
    stopping_criteria: Sequence[Any] = (),
    generation_config: GenerationConfig | None = None,
    *,
    draft: PreTrainedModel | str | None = None,
    ngrams: bool = False,
    growmap: GrowMap | StrPath | None = None,
    plan: Plan | None = None,
    drafting: Drafting | str = Drafting(),
    seed: int | None = None,
    tree_streamer: Any = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decode with trees inside `generate`: `model.generate(**inputs, custom_generate=tree_generate, draft=draft, growmap="68m_7b-64")`.

    Greedy outputs are those of `generate`, token for token; sampled ones have its distribution. Temperature and top-p alone are applied by
    the steps themselves, which are captured on CUDA; any other logits processor is asked path by path, and steps with it run eagerly.
    (`generate` adds `top_k` 50 where neither the call nor the model says otherwise; pass `top_k=0`.) The prompts of a batch are decoded
    one by one. What is made of a module is kept with it until its weights, or the draft, change; `release` frees it.

    Args:
        model: the target, a causal language model in eval mode.
        input_ids: prompts int64 [batch, length], padded on the left.
        logits_processor: the processors that `generate` prepared.
        stopping_criteria: the criteria that it prepared. They are asked token by token, and cut the text where they would cut it there.
        generation_config: the settings that it prepared.
        draft: the draft module, on the model's device, or "ngram", which needs none (None: the model decodes alone). `generate` keeps
            `assistant_model` from callables.
        ngrams: whether n-grams stand beside the draft module, as one draft.
        growmap: the tree: a growmap, the path of one, or the name of one that comes along.
        plan: a tree, a budget of dynamic trees or another plan, in place of a growmap.
        drafting: how children are drafted and verified; a rule's name stands for `Drafting(rule)`.
        seed: seed of the random streams of sampled outputs (None: drawn from torch's own, so that `torch.manual_seed` holds).
        tree_streamer: a streamer that gets the prompt, every token and the end, as `generate` hands them to `streamer`, which it keeps
            from callables.
        **model_kwargs: what else it hands over for passes; a mask of the padding is read, and what trees cannot follow is refused.

    Returns:
        int64 [batch, length], padded on the right; with `return_dict_in_generate`, a GenerateDecoderOnlyOutput of it and nothing else.

    Raises:
        SettingsError: for arguments that do not go together, or that trees cannot follow (beams, guidance, scores, embeddings).
        ModelError: for modules that cannot be decoded with, and for processors that keep a state.
        CapacityError: for a prompt with more tokens than the model has positions.
    """
    config = generation_config or model.generation_config
    refuse(config, model_kwargs)
    chosen = _plan(growmap, plan, draft)
    prompts = prompts_of(input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
    if tree_streamer is not None and len(prompts) > 1:
        raise SettingsError(f"`tree_streamer` streams one text, but there are {len(prompts)} prompts; pass them one by one")
    kept = kept_of(model)
    pair = kept.models(model, draft, ngrams)
    if input_ids.device != pair.target.device:
        raise ModelError(f"`input_ids` are on {input_ids.device}, but {pair.target.name} is on {pair.target.device}; move them there")
    choice = choice_of(logits_processor, do_sample=bool(config.do_sample))
    how = drafting_of(drafting)
    if how.temperature is None and choice.processors:
        how = replace(how, temperature=choice.temperature)
    if seed is None:
        seed = 0 if choice.sampling.greedy else int(torch.randint(1 << 62, ()))
    stops = Stops.of(stopping_criteria, int(config.max_length or 0))
    run = _Run(kept, pair, chosen, choice, how, stops, seed, input_ids, prompts)
    texts = run.all(tree_streamer)
    pad = getattr(config, "_pad_token_tensor", None)
    width = max(map(len, texts))
    new = torch.full((len(texts), width), 0 if pad is None else int(pad))
    for row, text in zip(new, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    sequences: Any = torch.cat([input_ids, new.to(input_ids)], dim=1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if config.return_dict_in_generate else sequences


@dataclass(frozen=True)
class _Run:
    """One call: everything that its rows share."""

    kept: Kept
    pair: Target
    plan: Plan | None
    choice: Choice
    drafting: Drafting
    stops: Stops
    seed: int
    input_ids: Tensor
    """int64 [batch, width]."""
    prompts: Sequence[tuple[int, ...]]
    """The prompt of each row, without its padding."""

    def all(self, streamer: Any) -> list[list[int]]:
        """Return the new tokens of every row."""
        if streamer is not None:
            streamer.put(self.input_ids.cpu())
        texts = [list(self._tokens(row, self.stops, streamer)) for row in range(len(self.prompts))]
        if streamer is not None:
            streamer.end()
        longest = max(map(len, texts))
        if not self.stops.pads:  # `generate` goes on with all texts until the last one ends
            whole = replace(self.stops, longest=self.input_ids.shape[1] + longest, others=())
            texts = [text if len(text) == longest else list(self._tokens(row, whole, None)) for row, text in enumerate(texts)]
        return texts

    def _tokens(self, row: int, stops: Stops, streamer: Any) -> Iterator[int]:
        """Yield the new tokens of a row up to where `generate` would stop."""
        text, last = self.input_ids[row], -1
        count = len(text)
        for record in self._records(row, stops):
            for last in record.tokens:
                yield last
                count += 1
                if streamer is not None:
                    streamer.put(torch.tensor([last]))
                if stops.others:
                    text = torch.cat([text, text.new_tensor([last])])
                    if stops.reached(text, row, len(self.prompts)):
                        return
        if count < stops.longest and last not in stops.ends:
            _LOG.warning("the text ends after %s: %s knows no more positions", counted(count, "token"), self.pair.target.name)

    def _records(self, row: int, stops: Stops) -> Iterator[StepRecord]:
        """Decode a row."""
        prompt, width, rows = self.prompts[row], self.input_ids.shape[1], len(self.prompts)
        model, draft = self.pair.target, self.pair.models.get("draft")
        if reason := unreadable(prompt, model.vocabulary_size):
            raise ModelError(f"a prompt for {model.name} has {reason}")
        drafted, room = None if draft is None else readable(draft, prompt), readable(model, prompt)
        if room is not None and len(prompt) > room:
            raise CapacityError(
                f"a prompt has {counted(len(prompt), 'token')}, but {model.name} knows {counted(room, 'position')}{model.rope_note}; "
                "pass shorter `input_ids`"
            )
        request = Request(prompt, stops.longest - width, stops.ends, self.choice.sampling, room, drafted=drafted)
        generator, engine = prompt_generator(self.seed, row, model.device), engine_of(model, draft, self.kept.say)
        target: SlotModel = model
        if self.choice.processors:
            padding = tuple(self.input_ids[row, : width - len(prompt)].tolist())
            asking = Asking(stops.ends, stops.longest, padding, row, rows)
            processors = for_row(self.choice.processors, row) if rows > 1 else self.choice.processors
            processed = ProcessedModel(model, processors, asking)
            self.kept.say(f"{model.name} runs eagerly: {processed.eager_reason}")
            target, engine = processed, None
        if self.plan is None:
            return decode_autoregressive(target, request, generator, engine=engine)
        return decode_speculative(target, draft, self.plan, request, generator, drafting=self.drafting, engine=engine)


def _plan(growmap: GrowMap | StrPath | None, plan: Plan | None, draft: PreTrainedModel | str | None) -> Plan | None:
    """Return the plan to draft by; None without a draft. Raises SettingsError, GrowMapError."""
    if growmap is not None and plan is not None:
        raise SettingsError("`growmap` and `plan` both say what to draft; pass one of them")
    if growmap is not None:
        found: Plan | None = (growmap if isinstance(growmap, GrowMap) else load_growmap(growmap)).tree
    else:
        found = plan
    if found is None and draft is not None:
        raise SettingsError("a draft needs a tree; pass `growmap` (a growmap, its file, or a name such as '68m_7b-64') or `plan`")
    return found
