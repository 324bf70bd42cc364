"""Generate text with a grafted model, and judge it by the same pass.

    generator = GuardedGenerator.load("guards/smollm2-chat")
    with generator.generate("How do I bake bread?") as generation:
        for piece in generation:
            print(piece.text, end="")
    generation.finish        # "stop", "length" or "harmful"
    generations = generator.generate_batch(["…", "…"])      # each stops by itself
    generator.read("How do I bake bread?", "Take flour.")   # the verdict on what is written already

The engine gives the neurons of each token that it reads, so a token that was chosen has its verdict
when the engine has read it, which is when the next is chosen. No piece of text comes out before.
"""

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from siren_runtime.bundle.arguments import check_choice, whole_number
from siren_runtime.bundle.reader import Verify
from siren_runtime.bundle.thresholds import checked_threshold
from siren_runtime.errors import InputError
from siren_runtime.scoring.verdict import judge_of
from siren_runtime.streaming.aggregation import Aggregation, AggregationName, aggregation_of
from siren_runtime.streaming.decision import AtTier, Rule, checked_rules
from siren_runtime.streaming.result import StreamResult
from siren_runtime.text.deadline import Deadline
from siren_runtime.text.reading import Limits

from .chat import Message, check_control
from .engine import Device, Engine
from .files import check_files, read_head, weights_checked
from .generation import Generation, Settings, read_tokens
from .head import HeadEngine
from .manifest import HEAD_FILE, NEURONS_OUTPUT, GraftManifest, load_manifest
from .prompts import check_encodable, check_length, checked_messages, checked_prompts, text_of
from .sampling import Sampling, checked_sampling
from .spans import ConversationSpans
from .watch import Watch


class GuardedGenerator:
    """A grafted model that is open. Threads may share it; each has generations of its own.

    Attributes:
        engine, head, manifest: what it is made of.
        judge: what decides.
    """

    def __init__(
        self,
        engine: Engine,
        head: HeadEngine,
        manifest: GraftManifest,
        spans: bool | Iterable[int] | None = None,
    ) -> None:
        """Join an open engine and its head; `GuardedGenerator.load` is the usual way.

        Raises:
            InputError: as `load`, of `spans`.
        """
        self.engine, self.head, self.manifest = engine, head, manifest
        judge = judge_of(manifest.heads, manifest.decisions, Limits())
        limits = judge.limits.asking(spans, judge.span_sizes)
        self.judge = replace(judge, limits=limits)
        if self.judge.limits.spans and not head.pools_mean:
            raise InputError(
                f"{engine.folder}: the heads read the last token, so spans have no scores of their "
                "own; load it without (spans=False)"
            )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: Device = "auto",
        verify: Verify = "read",
        spans: bool | Iterable[int] | None = None,
    ) -> "GuardedGenerator":
        """Open the folder that siren graft wrote.

        Args:
            threads: CPU threads of the model; None takes as many as the folder's config says, else
                all cores.
            device: "auto" is what the folder was built for; "cpu" runs it there.
            verify: "read" compares the SHA-256 of every file with guard.json, that of the weights
                while the engine opens them; "size" compares sizes only. All files are read, so
                that "full" is the same as "read".
            spans: True scores sentences and spans too, of the sizes that there are thresholds for,
                else of 32, 64 and 128 tokens; or sizes in tokens, as `Guard.load`. None is where
                siren calibrate --spans set thresholds.

        Raises:
            BundleError: the folder is not grafted, is damaged, or holds another model than the one
                that was grafted.
            BackendError: onnxruntime-genai is missing, or cannot load the folder.
            InputError: `threads` or `spans` is out of range, `device` or `verify` is none of these,
                or `folder` no path; or spans are to be scored, and the heads read the last token
                alone.
        """
        if not isinstance(folder, str | os.PathLike):
            raise InputError(f"folder must be a path, found {type(folder).__name__}")
        check_choice("device", device, get_args(Device))
        path = Path(os.path.realpath(folder))
        manifest = load_manifest(path)
        check_files(path, manifest, verify)
        head = HeadEngine(read_head(path, manifest, verify), path / HEAD_FILE, manifest)
        with weights_checked(path, manifest, verify):
            engine = Engine(path, threads=threads, device=device)
        return cls(engine, head, manifest, spans)

    @property
    def tiers(self) -> tuple[AtTier, ...]:
        """The tiers of calibration as decision rules; empty if there are none.

        They are those of responses, where there are such: rules go by the scores of one.
        """
        head = self.judge.primary.of_text(True)
        return tuple(AtTier(tier.name, tier.threshold) for tier in head.tiers)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        chat: bool = True,
        continue_last: bool = False,
        max_tokens: int = 512,
        sampling: Sampling | None = None,
        threshold: float | None = None,
        rules: Sequence[Rule] = (),
        aggregation: AggregationName = "mean",
        span: int = 64,
        every: int = 1,
        holdback: int = 0,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> Generation:
        """Read a prompt and judge it; the response is generated as the result is iterated.

        Args:
            prompt: a text, or messages, each with its "role" and "content".
            chat: put the prompt in the model's chat template; a text is then the one message of a
                user. Without, the model goes on with the text as it is.
            continue_last: go on with the last message, the assistant's, in place of a new one; it
                counts as part of the prompt.
            max_tokens: of the response, at most.
            threshold: harmful from this score; None is the folder's.
            rules: decision rules in place of the threshold, at each token that counts; what decides
                is the first in force. The threshold looks at the prompt as a whole.
            aggregation, span: as `Guard.stream`.
            every: tokens that the head reads at once. Each has its score all the same; pieces of
                text wait for the last of them.
            holdback: tokens that must pass after a piece before it is given out; what precedes
                a verdict of harm by no more is not shown.
            deadline: seconds that the generation may take; looked at between engine runs, of which
                each 64 tokens of a prompt are one.
            cancel: ends the generation between two engine runs once it is set.

        Raises:
            InputError: an argument is out of range, the prompt has no text or no room, invisible
                characters cut its words, a message holds a control token, the chat template refuses
                it, or it stands otherwise than what the head was trained on.
            BackendError: the engine failed, or a value is not finite.
            InterruptedCall: the deadline passed, or the caller cancelled.
        """
        (generation,) = self.generate_batch(
            [prompt],
            chat=chat,
            continue_last=continue_last,
            max_tokens=max_tokens,
            sampling=sampling,
            threshold=threshold,
            rules=rules,
            aggregation=aggregation,
            span=span,
            every=every,
            holdback=holdback,
            deadline=deadline,
            cancel=cancel,
        )
        return generation

    def generate_batch(
        self,
        prompts: Iterable[str | Sequence[Message]],
        *,
        chat: bool = True,
        continue_last: bool = False,
        max_tokens: int = 512,
        sampling: Sampling | None = None,
        threshold: float | None = None,
        rules: Sequence[Rule] = (),
        aggregation: AggregationName = "mean",
        span: int = 64,
        every: int = 1,
        holdback: int = 0,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Generation]:
        """Read several prompts at once and judge each; their responses grow together.

        Each generation stops by itself. One that is iterated takes the others along, whose tokens
        wait for them; so iterate them in turns, or on a thread each. The arguments are those of
        `generate`, and so are the errors. The prompts are read in one engine run.

        Returns:
            A generation a prompt, in their order.
        """
        aggregate, rules = aggregation_of(aggregation, span), checked_rules(rules)
        threshold = None if threshold is None else checked_threshold(threshold)
        max_tokens = whole_number("max_tokens", max_tokens, 1)
        settings = self._settings(max_tokens, every, holdback, rules, Deadline(deadline, cancel))
        search, given = checked_sampling(sampling).search(), checked_prompts(prompts)
        rows = [self.prompt_tokens(prompt, chat, max_tokens, continue_last) for prompt in given]
        new_tokens = max_tokens + 1  # the last token is judged when the engine has read it
        settings.deadline.check("before the prompts")
        runs = self.engine.run_rows(rows, new_tokens, search, [NEURONS_OUTPUT])
        return [
            Generation(
                self.engine,
                run,
                self.watch(aggregate, rules, threshold),
                tokens,
                text_of(prompt),
                settings,
            )
            for run, tokens, prompt in zip(runs, rows, given, strict=True)
        ]

    def read(
        self,
        prompt: str | Sequence[Message],
        response: str = "",
        *,
        chat: bool = True,
        threshold: float | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> StreamResult:
        """Judge a prompt, and a response that was written before as if the model had chosen it.

        Args:
            response: to the prompt; empty if there is none.
            prompt, chat, threshold, deadline, cancel: as `generate`.

        Returns:
            The verdict at the end. Nothing is generated. `is_harmful` is None where invisible
            characters cut the words, as in `Guard.stream`.

        Raises:
            InputError, BackendError, InterruptedCall: as `generate`.
        """
        threshold = None if threshold is None else checked_threshold(threshold)
        settings = self._settings(1, 1, 0, (), Deadline(deadline, cancel))
        check_encodable("the response", response)
        check_length("the response", len(response))
        if chat:
            check_control("the response", response, self.engine.control)
        answer = self.engine.encode(response) if response else []
        tokens = self.prompt_tokens(prompt, chat, max(len(answer), 1))
        run = self.engine.run(len(tokens) + len(answer) + 1, {})
        watch, padding = self.watch(threshold=threshold), self.engine.model.padding
        watch.tell(text_of(prompt))
        try:
            read_tokens(run, watch, tokens, "prompt", settings.deadline, padding)
            if answer:
                watch.begin_response(alone=settings.response_only)
                watch.tell(response)
                read_tokens(run, watch, answer, "response", settings.deadline, padding)
        finally:
            run.close()
        return watch.result

    def _settings(
        self, max_tokens: int, every: int, holdback: int, rules: Sequence[Rule], deadline: Deadline
    ) -> Settings:
        return Settings(
            max_tokens=max_tokens,
            every=whole_number("every", every, 1),
            holdback=whole_number("holdback", holdback, 0),
            by_rules=bool(rules),
            response_only=self.manifest.pooled == "response",
            deadline=deadline,
        )

    def watch(
        self,
        aggregation: Aggregation | None = None,
        rules: Sequence[Rule] = (),
        threshold: float | None = None,
    ) -> Watch:
        """What judges one sequence, arguments as `Watch`; spans too where this generator does."""
        sizes, spans = self.judge.limits.spans, None
        if sizes and aggregation is None:
            spans = ConversationSpans(sizes, self.head, self.engine.pieces().decode)
        return Watch(self.head, self.judge, aggregation, rules, threshold, spans)

    def time_unguarded(
        self, prompt: str | Sequence[Message], chat: bool, max_tokens: int, sampling: Sampling
    ) -> tuple[int, float]:
        """Go on with a prompt with no guard, as `generate` does. The text goes nowhere.

        Returns:
            How many tokens were chosen, and in how many seconds, those for the prompt included.

        Raises:
            InputError, BackendError: as `generate`.
        """
        started, chosen = time.perf_counter(), 0
        tokens = self.prompt_tokens(prompt, chat, max_tokens)
        run = self.engine.run(len(tokens) + max_tokens + 1, sampling.search())
        pieces = self.engine.pieces()
        run.append(tokens)
        while chosen < max_tokens and (token := run.step()) not in self.engine.ends:
            pieces.decode(token)
            chosen += 1
        return chosen, time.perf_counter() - started

    def prompt_tokens(
        self,
        prompt: str | Sequence[Message],
        chat: bool,
        max_tokens: int,
        continue_last: bool = False,
    ) -> list[int]:
        """The prompt's tokens, if the model has room for them and the response.

        Raises:
            InputError, BackendError: as `generate`.
        """
        trained_on = self.manifest.trained_on
        if trained_on is not None and (trained_on.text == "chat") != chat:
            raise InputError(
                f"the head was trained on {trained_on.text} text, and this is "
                f"{'in the chat template' if chat else 'without it'}, so its scores say nothing; "
                f"generate with chat={not chat}, or graft a head that was trained on such text"
            )
        text = self._text(prompt, chat, continue_last)
        check_length("the prompt", len(text))
        tokens = self.engine.encode(text)
        if not tokens:
            raise InputError("the tokenizer makes no token of the prompt")
        room = max(self.engine.model.context_length - max_tokens - 1, 0)
        if len(tokens) > room:
            raise InputError(
                f"the prompt has {len(tokens):,} tokens, and the model has room for {room:,} "
                f"beside a response of {max_tokens:,}; shorten it, or ask for fewer tokens"
            )
        return tokens

    def _text(self, prompt: str | Sequence[Message], chat: bool, continue_last: bool) -> str:
        """What the model goes on with."""
        if not chat:
            if isinstance(prompt, str) and not continue_last:
                check_encodable("the prompt", prompt)
                return prompt
            raise InputError("without the chat template a prompt is a str, found messages")
        messages = checked_messages(prompt)
        for number, message in enumerate(messages):
            check_control(f"messages[{number}]", message, self.engine.control)
        if not continue_last:
            return self.engine.chat(messages)
        *before, last = messages
        if not before or last["role"] != "assistant":
            raise InputError(
                "only the last message, an assistant's behind others, can be gone on with; of "
                f"{len(messages)} the last is the {last['role']}'s"
            )
        return self.engine.chat(before) + last["content"]
