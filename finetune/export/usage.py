"""How each exported folder is loaded, for its model card."""

from finetune.export.classification import text_fields
from finetune.export.source import ExportSource


def describe_usage(source: ExportSource, format: str) -> tuple[str, str]:
    """Returns Markdown on loading a folder, and the library that loads it by its Hub name."""
    task = source.predictor.task
    if format == "sequence-classification":
        return _PIPELINE.format(given=_example(source)), "transformers"
    if format == "token-classification":
        given = ", ".join(f'"{name} ..."' for name in text_fields(task))
        return _TOKENS.format(given=given, apply=_FUNCTIONS[task.labels.kind]), "transformers"
    names = [*task.format.fields, *["choices"] * task.format.is_multiple_choice]
    fields = ", ".join(f'"{name}"' for name in names)
    packages = {
        "standalone": "transformers and torch",
        "onnx": "transformers and onnxruntime",
        "adapter": "transformers, torch and peft, and the base model",
    }
    text = _SCRIPT.format(packages=packages[format], fields=fields)
    library = {"standalone": "transformers", "adapter": "peft"}.get(format, format)
    return text + (_GRAPH if format == "onnx" else ""), library


def _example(source: ExportSource) -> str:
    """Code of the input of a pipeline."""
    first, *second = text_fields(source.predictor.task)
    return (
        f'{{"text": "{first} ...", "text_pair": "{second[0]} ..."}}' if second else f'"{first} ..."'
    )


_PIPELINE = """\
```python
from transformers import pipeline

classify = pipeline("text-classification", "FOLDER", truncation=True)
classify({given})
```"""

_TOKENS = """\
The logits of an input are those of its last token:

```python
from transformers import AutoModelForTokenClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForTokenClassification.from_pretrained("FOLDER")
tokens = tokenizer({given}, truncation=True, return_tensors="pt")
model(**tokens).logits[:, -1]{apply}
```"""

_FUNCTIONS = {"classes": ".softmax(-1)", "multi_label": ".sigmoid()", "scores": ""}
"""Kind of label to what turns logits into probabilities."""

_SCRIPT = """\
`predict.py` needs {packages}. Each line of its input is a JSON object with {fields}:

```bash
python predict.py rows.jsonl
```"""

_GRAPH = """\


The inputs of `model.onnx` are `input_ids` and `attention_mask`, int64 of the shape (rows, views,
tokens), padded on the right; the output `logits` is (rows, classes), or (rows, choices)."""
