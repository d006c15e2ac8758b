"""scikit-learn compatible estimators."""

from finetune.sklearn.classifier import Classifier
from finetune.sklearn.regressor import Regressor

__all__ = ["Classifier", "Regressor"]
