"""A decoder as a scikit-learn estimator: pipeline, cross-validation, grid search.

Run: python examples/classifier_pipeline.py --base gpt2
"""

import argparse

from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import finetune

GOOD = ["A fine film.", "I laughed and cried.", "The best of the year.", "Bright and moving."]
BAD = ["A dull film.", "I fell asleep.", "The worst of the year.", "Grey and endless."]


def shorten(texts: list[str]) -> list[str]:
    """A preprocessing step: keeps the first sentence of every text."""
    return [text.split(".")[0] for text in texts]


def main() -> None:
    """Searches for a learning rate and predicts with the best classifier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2", help="a Hub id, a folder, or tiny")
    parser.add_argument("--epochs", type=float, default=3)
    args = parser.parse_args()
    texts, labels = [*GOOD, *BAD], ["good"] * len(GOOD) + ["bad"] * len(BAD)

    classifier = finetune.Classifier(
        base=args.base, epochs=args.epochs, batch_size=4, max_tokens=48, random_state=0
    )
    pipeline = make_pipeline(FunctionTransformer(shorten), classifier)
    print("accuracy by fold:", cross_val_score(pipeline, texts, labels, cv=2))

    grid = {"classifier__learning_rate": [6.25e-5, 1e-3]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(texts, labels)
    print("best:", search.best_params_, "with accuracy", search.best_score_)
    print(dict(zip(search.classes_, search.predict_proba(["A moving film."])[0], strict=True)))

    # Pairs of texts are entailment; with format="similarity" their order is irrelevant.
    pairs = [(text, "The critic is happy.") for text in texts]
    entailment = classifier.fit(pairs, [1] * 4 + [0] * 4)
    print("pairs:", entailment.predict(pairs))


if __name__ == "__main__":
    main()
