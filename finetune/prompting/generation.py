"""Text generation with any decoder, through transformers' `generate`."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import GenerationConfig, TextIteratorStreamer

from finetune.data.rows import RowLocation
from finetune.distributed.setup import choose_precision, create_accelerator
from finetune.models.pretrained import count_positions, load_language_model
from finetune.models.task_tokens import find_special_token, find_start_tokens
from finetune.recipe.schema import SEED_LIMIT, BaseConfig
from task_formats import Row, UsageError

_MIN_TEMPERATURE = 0.001
"""Logits divided by less than this may overflow."""


@dataclass(frozen=True)
class DecodingOptions:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    """0 is greedy decoding; otherwise logits are divided by it before sampling."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 is all."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most likely tokens with this total probability."""
    beams: int = 1
    """Beam search of this width (GPT-3, section 2.4: 4)."""
    length_penalty: float = 0.6
    """A beam's log-likelihood is divided by its length to this power (GPT-3: 0.6)."""
    seed: int = 0
    """Random seed of sampling; the result also depends on the other texts of the batch."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value out of bounds, and for one that has no effect."""
        sound = self.temperature == 0 or _MIN_TEMPERATURE <= self.temperature < math.inf
        expected = {
            "max_new_tokens": (self.max_new_tokens > 0, "1 or more"),
            "temperature": (sound, f"0, or {_MIN_TEMPERATURE} or more"),
            "top_k": (self.top_k >= 0, "0, or a number of tokens"),
            "top_p": (0 < self.top_p <= 1, "a number over 0 and up to 1"),
            "beams": (self.beams > 0, "1 or more"),
            "length_penalty": (math.isfinite(self.length_penalty), "a number"),
            "seed": (0 <= self.seed < SEED_LIMIT, f"a number from 0 to {SEED_LIMIT - 1}"),
        }
        flags = {name: "--" + name.replace("_", "-") for name in expected}
        for name, (valid, values) in expected.items():
            if not valid:
                what = f"{flags[name]} cannot be {getattr(self, name)}"
                raise UsageError(what, cure=f"Give {values}.")
        if self.beams > 1 and self.temperature > 0:
            what = "beam search and sampling exclude each other"
            raise UsageError(what, cure="Leave out temperature, or beams.")
        unused = {} if self.temperature else dict.fromkeys(("top_k", "top_p"), "--temperature")
        unused |= {"length_penalty": "--beams"} if self.beams == 1 else {}
        for name, needed in unused.items():
            if getattr(self, name) != getattr(DecodingOptions, name):
                what = f"{flags[name]} has no effect without {needed}"
                raise UsageError(what, cure=f"Add {needed}, or leave it out.")


class TextGenerator:
    """A decoder that continues texts."""

    def __init__(self, base: BaseConfig, device: str | None = None) -> None:
        """Loads the decoder, in bfloat16 on accelerators made for it, otherwise in float32.

        `device` is cpu, cuda, cuda:1, ...; None takes the best available.
        """
        self._accelerator = accelerator = create_accelerator("fp32", device)
        decoder, tokenizer = load_language_model(base.model_copy(update={"dropout": None}))
        # transformers' attention has a cache that grows by a token; ours has none.
        decoder.set_attn_implementation("sdpa" if decoder._supports_sdpa else "eager")
        fast = accelerator.device.type != "cpu" and choose_precision("auto") == "bf16"
        dtype = torch.bfloat16 if fast else torch.float32
        self._decoder = cast(Any, decoder).to(accelerator.device, dtype).eval()
        self._tokenizer, self._start_ids = tokenizer, find_start_tokens(tokenizer)
        self._empty_id = find_special_token(tokenizer, "bos", "eos") or 0
        # Any token serves as padding: the attention mask hides it.
        self._pad_id = find_special_token(tokenizer, "pad", "eos") or 0

    def generate(
        self,
        texts: Sequence[str],
        options: DecodingOptions = DecodingOptions(),
        locations: Sequence[RowLocation] = (),
    ) -> list[str]:
        """Returns the continuation of each text; all are read in one batch.

        Raises UsageError where a text and its continuation are longer than the decoder's context;
        the message names its location if `locations` are given.
        """
        inputs, prompt_length = self._encode(texts, options, locations)
        tokens = self._generate(inputs, options)
        return self._tokenizer.batch_decode(tokens[:, prompt_length:], skip_special_tokens=True)

    def generate_rows(
        self,
        rows: Iterable[tuple[RowLocation, Row]],
        column: str,
        options: DecodingOptions = DecodingOptions(),
        batch_size: int = 8,
    ) -> Iterator[tuple[Row, str]]:
        """Yields each row with the continuation of the text in its `column`, in order.

        Processes share the batches. A batch has the same rows, and so the same result, however
        many processes there are.
        """
        remaining = iter(rows)
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        while chunk := list(islice(remaining, processes * batch_size)):
            own = chunk[rank * batch_size : (rank + 1) * batch_size]
            texts = [str(row[column]) for _, row in own]
            results = self.generate(texts, options, [place for place, _ in own]) if own else []
            if processes > 1:
                results = gather_object(results)
            yield from zip((row for _, row in chunk), results, strict=True)

    def stream(self, text: str, options: DecodingOptions = DecodingOptions()) -> Iterator[str]:
        """Returns the pieces of a continuation as they are generated; with beam search, only one.

        Raises UsageError as `generate` does, before the first piece.
        """
        inputs, _ = self._encode([text], options)
        if options.beams > 1:
            return iter(self.generate([text], options))
        return self._stream(inputs, options)

    def _stream(self, inputs: dict[str, torch.Tensor], options: DecodingOptions) -> Iterator[str]:
        streamer = TextIteratorStreamer(
            cast(Any, self._tokenizer), skip_prompt=True, skip_special_tokens=True
        )
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._generate(inputs, options, streamer=streamer)
            except BaseException as error:  # Raised again in the thread that reads the stream.
                failures.append(error)
                streamer.end()

        thread = Thread(target=run, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failures:
            raise failures[0]

    def _generate(
        self, inputs: dict[str, torch.Tensor], options: DecodingOptions, **extra: Any
    ) -> Any:
        # Explicit values, because generate() takes others from the base's own configuration.
        settings: dict[str, Any] = {"num_beams": options.beams, "do_sample": False}
        if options.temperature > 0:
            names = ("temperature", "top_p", "top_k")
            settings |= {"do_sample": True, **{name: getattr(options, name) for name in names}}
        if options.beams > 1:
            settings["length_penalty"] = options.length_penalty
        config = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._pad_id,
            **settings,
        )
        torch.manual_seed(options.seed)
        with torch.inference_mode():
            return self._decoder.generate(**inputs, generation_config=config, **extra)

    def _encode(
        self, texts: Sequence[str], options: DecodingOptions, locations: Sequence[RowLocation] = ()
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Texts padded on the left to a common length, and that length."""
        # A tokenizer may also put the end of text after every text: nothing would follow it.
        encoded = self._tokenizer(list(texts), add_special_tokens=False)
        rows = [[*self._start_ids, *ids] or [self._empty_id] for ids in encoded["input_ids"]]
        longest = max(map(len, rows))
        limit = count_positions(self._decoder)
        if limit is not None and longest + options.max_new_tokens > limit:
            index = [len(row) for row in rows].index(longest)
            raise UsageError(
                f"a text of {longest} tokens and {options.max_new_tokens} new tokens are more than "
                f"the base's {limit} positions",
                where=str(locations[index]) if locations else "",
                cure="Shorten the text, or lower --max-new-tokens.",
            )
        tokens = [[self._pad_id] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        return {name: x.to(self._decoder.device) for name, x in inputs.items()}, longest
