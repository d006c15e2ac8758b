"""Free text from any decoder, through transformers' own generate."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
)

from finetune.data.rows import RowLocation
from finetune.distributed.setup import choose_precision, create_accelerator
from finetune.models.pretrained import count_positions, find_special_token, load_language_model
from finetune.recipe.schema import SEED_LIMIT, BaseConfig
from task_formats import Row, UsageError

_COLDEST = 0.001
"""Logits divided by less than this may be infinite."""


@dataclass(frozen=True)
class DecodingOptions:
    """How the next token is chosen."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    """0 takes the likeliest token; else the logits are divided by this and one is drawn."""
    top_k: int = 0
    """Draw from so many likeliest tokens; 0 from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this probability together."""
    beams: int = 1
    """Beam search of this width (GPT-3, section 2.4: 4)."""
    length_penalty: float = 0.6
    """A beam's log-likelihood is divided by its length to this power (GPT-3: 0.6)."""
    seed: int = 0
    """What is drawn depends on it and on the texts of a batch."""

    def __post_init__(self) -> None:
        """UsageError for a value out of bounds, and for one that would change nothing."""
        bounds = {
            "max_new_tokens": (0 < self.max_new_tokens < 2**31, "1 or more"),
            "temperature": (
                self.temperature == 0 or _COLDEST <= self.temperature < math.inf,
                f"0, or {_COLDEST} or more",
            ),
            "top_k": (self.top_k >= 0, "0, or a number of tokens"),
            "top_p": (0 < self.top_p <= 1, "a number over 0 and up to 1"),
            "beams": (self.beams > 0, "1 or more"),
            "length_penalty": (math.isfinite(self.length_penalty), "a number"),
            "seed": (0 <= self.seed < SEED_LIMIT, f"a number from 0 to {SEED_LIMIT - 1}"),
        }
        for name, (fits, wanted) in bounds.items():
            if not fits:
                what = f"{_option(name)} cannot be {getattr(self, name)}"
                raise UsageError(what, cure=f"Give {wanted}.")
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Nobody is to believe in a setting that does nothing."""
        if self.beams > 1 and self.temperature > 0:
            raise UsageError("beam search draws nothing", cure="Leave out temperature, or beams.")
        idle = {
            "top_k": (self.temperature == 0, "--temperature 0 draws nothing", "--temperature 1"),
            "top_p": (self.temperature == 0, "--temperature 0 draws nothing", "--temperature 1"),
            "length_penalty": (self.beams == 1, "there is no beam search", "--beams 4"),
        }
        for name, (unused, why, other) in idle.items():
            if unused and getattr(self, name) != getattr(DecodingOptions, name):
                cure = f"Give {other} as well, or leave it out."
                raise UsageError(f"{why}, so {_option(name)} has no effect", cure=cure)


class TextGenerator:
    """A decoder that goes on with texts."""

    def __init__(self, base: BaseConfig, device: str | None = None) -> None:
        """Loads the decoder in float32, or bfloat16 where that is faster. UsageError as usual."""
        self._accelerator = accelerator = create_accelerator("fp32", device)
        decoder, tokenizer = load_language_model(base.model_copy(update={"dropout": None}))
        # Its own attention: ours holds no cache that grows by a token.
        decoder.set_attn_implementation("sdpa" if decoder._supports_sdpa else "eager")
        fast = accelerator.device.type != "cpu" and choose_precision("auto") == "bf16"
        self._decoder = cast(Any, decoder).to(
            accelerator.device, torch.bfloat16 if fast else torch.float32
        )
        self._decoder.eval()
        self._tokenizer = tokenizer

    def write(
        self,
        texts: Sequence[str],
        decoding: DecodingOptions = DecodingOptions(),
        places: Sequence[RowLocation] = (),
    ) -> list[str]:
        """What comes after each text, read together in one batch.

        UsageError where one is too long, with its place where they are known.
        """
        inputs, longest = self._inputs(texts, decoding, places)
        torch.manual_seed(decoding.seed)
        with torch.inference_mode():
            found = self._decoder.generate(**inputs, generation_config=self._settings(decoding))
        return self._tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)

    def write_rows(
        self,
        rows: Iterable[tuple[RowLocation, Row]],
        column: str,
        decoding: DecodingOptions = DecodingOptions(),
        batch_size: int = 8,
    ) -> Iterator[tuple[Row, str]]:
        """Each row with what comes after its text, in order; several processes share the batches.

        A batch is the same rows however many they are, and so is what is drawn for it.
        """
        remaining = iter(rows)
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        while lap := list(islice(remaining, processes * batch_size)):
            own = lap[rank * batch_size : (rank + 1) * batch_size]
            texts, places = [str(row[column]) for _, row in own], [place for place, _ in own]
            found = self.write(texts, decoding, places) if own else []
            written = gather_object(found) if processes > 1 else found
            yield from zip((row for _, row in lap), written, strict=True)

    def stream(self, text: str, decoding: DecodingOptions = DecodingOptions()) -> Iterator[str]:
        """What comes after a text, piece by piece as it is written; with beams, in one piece.

        Raises UsageError at once where the text is too long.
        """
        inputs, _ = self._inputs([text], decoding)
        if decoding.beams > 1:
            return iter(self.write([text], decoding))
        return self._stream(inputs, decoding)

    def _stream(self, inputs: dict[str, torch.Tensor], decoding: DecodingOptions) -> Iterator[str]:
        pieces = TextIteratorStreamer(
            cast(Any, self._tokenizer), skip_prompt=True, skip_special_tokens=True
        )
        failures: list[BaseException] = []
        thread = Thread(target=self._run, args=(inputs, decoding, pieces, failures), daemon=True)
        thread.start()
        yield from pieces
        thread.join()
        if failures:
            raise failures[0]

    def _run(
        self,
        inputs: dict[str, torch.Tensor],
        decoding: DecodingOptions,
        pieces: TextIteratorStreamer,
        failures: list[BaseException],
    ) -> None:
        try:
            torch.manual_seed(decoding.seed)
            with torch.inference_mode():
                settings = self._settings(decoding)
                self._decoder.generate(**inputs, generation_config=settings, streamer=pieces)
        except BaseException as error:  # It belongs to whoever reads the pieces.
            failures.append(error)
            pieces.end()

    def _inputs(
        self, texts: Sequence[str], decoding: DecodingOptions, places: Sequence[RowLocation] = ()
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Texts padded on the left, so that all go on at the same column; and that column."""
        rows = [
            ids or [_empty(self._tokenizer)] for ids in self._tokenizer(list(texts))["input_ids"]
        ]
        longest = max(map(len, rows))
        limit = count_positions(self._decoder)
        if limit is not None and longest + decoding.max_new_tokens > limit:
            at = [len(row) for row in rows].index(longest)
            raise UsageError(
                f"a text of {longest} tokens and {decoding.max_new_tokens} more are over "
                f"the base's {limit} positions",
                where=str(places[at]) if places else "",
                cure="Shorten the text, or ask for fewer with --max-new-tokens.",
            )
        pad = _pad(self._tokenizer)
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        device = self._decoder.device
        return {"input_ids": tokens.to(device), "attention_mask": seen.to(device)}, longest

    def _settings(self, decoding: DecodingOptions) -> GenerationConfig:
        draws = decoding.temperature > 0
        chosen: dict[str, Any] = {"num_beams": decoding.beams, "do_sample": draws}
        if draws:
            chosen |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
            chosen |= {"top_k": decoding.top_k}
        if decoding.beams > 1:
            chosen |= {"length_penalty": decoding.length_penalty}
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=_pad(self._tokenizer),
            **chosen,
        )


def _option(name: str) -> str:
    """A setting as the command line has it."""
    return "--" + name.replace("_", "-")


def _empty(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands for a text without tokens."""
    return find_special_token(tokenizer, "bos", "eos") or 0


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token: the mask hides it."""
    return find_special_token(tokenizer, "pad", "eos") or 0
