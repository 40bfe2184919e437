"""Writer: decodes prompts one after another with one engine, and gives out each text while it is made."""

import time
from collections.abc import Callable, Iterator

import torch

from treespec.data.prompts import Prompt
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import SlotModel
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import StepSpec
from treespec.errors import ModelError, counted
from treespec.models.pairs import Target
from treespec.models.positions import readable
from treespec.models.processed import ProcessedModel
from treespec.models.processors import as_generate
from treespec.text.composition import Composition, Piece
from treespec.text.engines import engine_of
from treespec.text.generated import Ended, Generated
from treespec.text.settings import TextSettings


class Writer:
    """Decodes texts with one plan (None: with the target alone) under the same settings.

    On CUDA, steps are captured by `engine`; if none is given, by the one of the models. `notice` is told what `tell` says.
    Raises ModelError for stop strings without a tokenizer, and what the settings and the plan rule out.
    """

    def __init__(
        self,
        pair: Target,
        plan: Plan | None,
        settings: TextSettings,
        *,
        engine: Engine | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(pair, Target):
            raise ModelError(
                f"`pair` is a {type(pair).__name__}, but it must be a Pair or a Target; make one by load_pair, or by pair of modules"
            )
        if settings.stop and pair.tokenizer is None:
            raise ModelError(f"`stop` needs the target's tokenizer, but {pair.target.name} comes without one; drop `stop`")
        self.pair, self.plan, self.settings = pair, plan, settings
        self.draft = None if plan is None else pair.models.get("draft")
        StepSpec(plan, settings.sampling, settings.drafting).build(pair.target, self.draft)  # raises what decoding would
        self.engine = engine or engine_of(pair.target, self.draft)
        self._notice = notice or (lambda line: None)
        self._told: set[str] = set()

    def write(self, prompt: Prompt, index: int = 0) -> "Writing":
        """Return the text that follows a prompt, to be decoded while it is read. Prompt `index` has a random stream of its own."""
        return Writing(self, prompt, index)

    def request(self, prompt: Prompt) -> Request:
        """Return the request to decode a prompt, within the positions of the models."""
        ids, settings = prompt.ids, self.settings
        drafted = None if self.draft is None else readable(self.draft, ids)
        room, pixels = readable(self.pair.target, ids), self.pair.pixels(prompt)
        return Request(ids, settings.max_new_tokens, self.pair.eos_token_ids, settings.sampling, room, pixels, drafted)

    def tell(self, request: Request) -> None:
        """Tell, each thing once, whether steps run eagerly on CUDA, and whether the tree is deeper than the room behind the prompt."""
        room = None if request.capacity is None else request.capacity - len(request.prompt)
        found = [] if self.engine is None else [self.engine.eager()]
        if self.plan is not None and room is not None and room < self.plan.depth:
            found.append(
                f"the tree is {self.plan.depth} deep, but only {counted(room, 'position is', 'positions are')} left behind the prompt: it is cut"
            )
        for line in filter(None, found):
            self._tell(line)

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._notice(line)

    def records(self, request: Request, index: int) -> Iterator[StepRecord]:
        """Decode a request."""
        settings = self.settings
        generator = prompt_generator(settings.seed, index, self.pair.target.device)
        target: SlotModel = self.pair.target
        engine = self.engine
        if settings.processors:
            processed = as_generate(self.pair.target, request.prompt, settings.max_new_tokens)
            if isinstance(processed, ProcessedModel):
                target, engine = processed, None
                self._tell(f"{processed.name} runs eagerly: {processed.eager_reason}, as its generation config asks for")
        if self.plan is None:
            return decode_autoregressive(target, request, generator, engine=engine)
        return decode_speculative(target, self.draft, self.plan, request, generator, drafting=settings.drafting, engine=engine)


class Writing(Iterator[Piece]):
    """A text that is decoded while its pieces are read. `result` tells what there is of it at any time.

    Without a tokenizer there are no pieces, only the result. The text ends early after `interrupt`.
    """

    def __init__(self, writer: Writer, prompt: Prompt, index: int) -> None:
        tokenizer = writer.pair.tokenizer
        self._writer, self._prompt, self._index = writer, prompt, index
        self._request = writer.request(prompt)
        self._composition = None if tokenizer is None else Composition(tokenizer, prompt.ids, writer.settings.stop)
        self._ids: list[int] = []
        self._ranks: list[tuple[int, ...]] = []
        self._ended: Ended | None = None
        self._interrupted = False
        self._started = self._latest = 0.0
        self._pieces = self._decode()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def interrupt(self) -> None:
        """End the text with the step that is running. This may be called at any time, as by a signal."""
        self._interrupted = True

    def result(self) -> Generated:
        """Return what has been written. A text that was not read to its end counts as interrupted."""
        composition = self._composition
        return Generated(
            text=None if composition is None else composition.text,
            ids=tuple(self._ids),
            ended=self._ended or "interrupted",
            accepted_ranks=tuple(self._ranks),
            seconds=self._latest - self._started,
            prompt_tokens=len(self._prompt.ids),
            stop=None if composition is None else composition.stop,
        )

    @torch.inference_mode()
    def _decode(self) -> Iterator[Piece]:
        for record in self._own(self._writer.records(self._request, self._index)):
            self._time(record)
            self._read(record)
            self._writer.tell(self._request)
            if self._composition is not None:
                yield from self._composition.take()
            if self._ended is None and self._interrupted:
                self._ended = "interrupted"
            if self._ended is not None:
                break
        self._ended = self._ended or ("length" if len(self._ids) >= self._request.gen_len else "room")
        if self._composition is not None:
            self._composition.end()
            yield from self._composition.take()

    def _own(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """Yield records while the target holds this text. Raises ModelError if another text took its place before the last one."""
        target = self._writer.pair.target
        begun = target.texts
        for record in records:
            yield record
            if target.texts != begun and len(self._ids) < self._request.gen_len:
                raise ModelError(
                    f"another text was begun with {target.name} while this one was read, and models hold one text at a time; "
                    "read a stream to its end first, or load the models again for the other text"
                )

    def _time(self, record: StepRecord) -> None:
        self._latest = time.perf_counter()
        if record.accepted is None:  # the prompt pass
            self._started = self._latest
        else:
            self._ranks.append(record.accepted)

    def _read(self, record: StepRecord) -> None:
        """Take the tokens of a step, up to an EOS token or the end of a stop string."""
        for number, token in enumerate(record.tokens):
            self._ids.append(token)
            if token in self._request.eos_token_ids:
                self._ended = "eos"
                return
            if self._composition is None:
                continue
            self._composition.add(token, number < len(record.accepted or ()))
            if self._composition.stop is not None:
                self._ended = "stop"
                return
