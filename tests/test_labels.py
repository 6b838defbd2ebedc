"""Of ``scripts/duplicates.py`` and ``scripts/mistakes.py``."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cnn_lightning.cli import duplicates, mistakes


class TestDuplicates:
    def test_nearest_is_found_flipped_or_not(self):
        train = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        near = train[31].clone()
        near[0, 0, 0] = near[0, 0, 0] ^ 128
        test = torch.stack([train[7], train[20].flip(2), near])
        distance, index, flipped = duplicates.nearest_images(test, train, flip=True)
        assert index.tolist() == [7, 20, 31]
        assert flipped.tolist() == [False, True, False]
        assert distance.tolist() == pytest.approx([0, 0, 128 / 28])
        distance, _, flipped = duplicates.nearest_images(test, train, flip=False)
        assert distance[1] > 50
        assert not flipped.any()

    def test_counts_and_draws(self, tiny_root, monkeypatch, capsys, error_of):
        monkeypatch.setenv("CNN_LIGHTNING_DATA", str(tiny_root))
        images = duplicates.FashionMNIST.read

        def with_copies(self, train):
            found, labels = images(self, train)
            if not train:  # two test images are training images, one with another label
                found[:2], labels[:2] = images(self, True)[0][:2], torch.tensor([labels[0], 9])
            return found, labels

        monkeypatch.setattr(duplicates.FashionMNIST, "read", with_copies)
        duplicates.duplicates(["--picture=pairs.png"])
        assert "| 0 | 2 | 0 | 1 |" in capsys.readouterr().out
        assert Path("pairs.png").stat().st_size > 1000
        for path in ("pairs.png", "pairs", "no/pairs.png"):
            assert f"--picture {path}: expected a new file" in error_of(duplicates.duplicates, f"--picture={path}")


class TestMistakes:
    def test_every_vote_is_of_five_and_too_few_for_the_label(self):
        assert len(mistakes.WRONG_LABELS) == 15
        for votes in mistakes.WRONG_LABELS.values():
            assert int(votes["label"]) + int(votes["other"]) + int(votes["neither"]) == 5
            assert int(votes["label"]) < 3
            assert 0 <= int(votes["proposed"]) <= 9

    def write(self, path, predicted):
        """All correct except some images: index -> (label, prediction)."""
        with Path(path).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["index", "true", "predicted", "correct", *map(str, range(10))])
            for index in range(10_000):
                true, guess = predicted.get(index, (1, 1))
                table.writerow([index, true, guess, int(true == guess), *np.eye(10)[guess] * 0.7 + 0.03])

    def test_page_counts_and_lists(self, monkeypatch, error_of):
        zeros = torch.zeros(10_000, 1, 28, 28, dtype=torch.uint8), torch.zeros(10_000, dtype=torch.int64)
        monkeypatch.setattr(mistakes.MNIST, "read", lambda self, train: zeros)
        monkeypatch.setattr(mistakes.MNIST, "prepare_data", lambda self: None)
        self.write("predictions.csv", {947: (8, 9), 3520: (6, 1), 5000: (2, 7)})
        mistakes.mistakes(["predictions.csv", "--into=page"])
        page = Path("page/mistakes.md").read_text()
        assert "Of 10,000 test images, 3 are misclassified" in page
        assert "99.97% right. 2 of these are among the 15" in page
        assert "in 1 of them the network predicts the digit that was proposed" in page
        assert "With the other 13 doubtful labels" in page
        listed, agreed = page.split("The doubtful labels with which")
        assert "| 947 | 8 | 9 | 73% | 0 the label, 5 a 9, 0 neither |" in listed
        assert "| 5000 | 2 | 7 | 73% |  |" in listed
        assert agreed.count(" neither |") == 13
        assert Path("page/mistakes.png").stat().st_size > 500
        for name in ("mistakes.md", "mistakes.png"):
            message = error_of(mistakes.mistakes, "predictions.csv", "--into=page")
            assert f"page/{name} exists, expected a new file" in message
            Path("page", name).unlink()

    def test_without_the_images_there_is_no_page(self, error_of):
        self.write("predictions.csv", {947: (8, 9)})
        assert "MNIST" in error_of(mistakes.mistakes, "predictions.csv", "--into=page")
        assert not Path("page").exists()

    def test_other_files_are_refused(self, error_of):
        assert "cannot read none.csv" in error_of(mistakes.mistakes, "none.csv", "--into=page")
        Path("some.csv").write_text("a,b\n1,2\n")
        assert "some.csv is not a predictions.csv" in error_of(mistakes.mistakes, "some.csv", "--into=page")
        assert not Path("page").exists()
