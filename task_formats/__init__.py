"""Tasks as data: formats, labels, prompts, and rows to token sequences.

Standard library only; nothing here depends on tensors.
"""

from task_formats.demonstrations import Demonstrations
from task_formats.encoding import RenderedBatch, ViewEncoder, split_common_prefix
from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Encoded, Example, Label, Prediction, Row, SpecialTokens
from task_formats.formats import FORMATS, Format, named_format
from task_formats.labels import Classes, Labels, MultiLabel, Range
from task_formats.prompt_tokens import AnswerTokenizer, PromptEncoder, Question
from task_formats.prompts import Prompt
from task_formats.task import Task
from task_formats.windows import Windows

__all__ = [
    "FORMATS",
    "AnswerTokenizer",
    "Classes",
    "Demonstrations",
    "Encoded",
    "Example",
    "Format",
    "Label",
    "Labels",
    "MultiLabel",
    "Prediction",
    "Prompt",
    "PromptEncoder",
    "Question",
    "Range",
    "RenderedBatch",
    "Row",
    "RowError",
    "SpecialTokens",
    "Task",
    "UsageError",
    "ViewEncoder",
    "Windows",
    "named_format",
    "split_common_prefix",
    "suggest",
]
