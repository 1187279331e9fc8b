"""SAF with the Trainer of transformers: the index is a column, the epoch comes from the trainer's state.

Run it: python examples/hugging_face_trainer.py
"""

from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from legato.flatness import SAF


class Digits(Dataset):
    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        self.inputs, self.target = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[row], "labels": self.target[row], "index": torch.tensor(row)}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


class SAFTrainer(Trainer):
    def __init__(self, *args, saf: SAF, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.saf = saf

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.saf.set_epoch(int(self.state.epoch))
        logits = model(inputs["inputs"])
        loss = nn.functional.cross_entropy(logits, inputs["labels"]) + self.saf(logits, inputs["index"])
        return (loss, logits) if return_outputs else loss


data, model = Digits(), Classifier()
with TemporaryDirectory() as folder:
    settings = TrainingArguments(
        folder, num_train_epochs=12, per_device_train_batch_size=64, learning_rate=0.01, report_to="none", save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    SAFTrainer(model, settings, train_dataset=data, saf=SAF(len(data), num_classes=10, lam=1.0, start=3)).train()

accuracy = (model.cpu()(data.inputs).argmax(1) == data.target).double().mean()
print(f"training accuracy {accuracy:.3f}")
