"""SAF with Lightning: the index comes with the data set, the epoch from a hook. Run it: python examples/lightning_module.py"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from legato.flatness import SAF


class Classifier(lightning.LightningModule):
    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = nn.CrossEntropyLoss()
        self.saf = SAF(num_samples, num_classes=10, lam=1.0, start=3)

    def on_train_epoch_start(self) -> None:
        self.saf.set_epoch(self.current_epoch)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target, index = batch
        logits = self.net(inputs)
        return self.criterion(logits, target) + self.saf(logits, index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["saf"] = self.saf.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.saf.load_state_dict(checkpoint["saf"])


pixels, labels = load_digits(return_X_y=True)
inputs, target = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
data = TensorDataset(inputs, target, torch.arange(len(inputs)))

lightning.seed_everything(0, verbose=False)
model = Classifier(len(data))
trainer = lightning.Trainer(
    max_epochs=12, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, DataLoader(data, batch_size=64, shuffle=True))

accuracy = (model.net(inputs).argmax(1) == target).double().mean()
print(f"training accuracy {accuracy:.3f}")
