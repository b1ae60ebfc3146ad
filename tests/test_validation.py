"""A validation loss is that of all targets, whatever the batch size, the ranks and the framework that reads it."""

import math
import shutil
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_ranks
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from pipeline import ShardLoader, TokenEmbedding

LENGTH = 12


@pytest.fixture(scope="module")
def shards(write_text):
    """A data set of 37 overlapping windows, the last one padded."""
    text = "".join(f"{number:04} " for number in range(60))[: 8 * 37 + 2]
    return write_text(text, tokenizer="bytes", max_length=LENGTH, stride=8, tail="pad", windows_per_group=10)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(TokenEmbedding(257, 8, LENGTH), nn.Linear(8, 257)).eval()


def losses_of(model, batch, reduction):
    logits = model(batch.input_ids)
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten(), reduction=reduction)


@given(
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 3),
    shuffle=st.sampled_from(["none", "full"]),
    score=st.sampled_from(["all", "new"]),
)
@settings(max_examples=20)
@torch.no_grad()
def test_sums_over_batches_and_ranks_give_the_loss_of_all_targets(
    shards, model, batch_size, world_size, shuffle, score
):
    losses = []
    for batch in ShardLoader(shards, batch_size=1, shuffle="none", score=score):
        of_all = losses_of(model, batch, "none")
        losses += of_all[batch.target_ids.flatten() != -100].tolist()
    totals = torch.zeros(2, dtype=torch.float64)
    for rank in range(world_size):
        validation = ShardLoader(
            shards,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
            score=score,
            drop_last=False,
            restart=True,
        )
        for batch in validation:
            totals += torch.tensor([losses_of(model, batch, "sum").item(), batch.num_targets])
    assert totals[1] == len(losses)
    assert float(totals[0] / totals[1]) == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@torch.no_grad()
def test_a_mean_of_means_is_another_number_and_a_rank_without_a_window_has_none(shards, model):
    means = [
        [losses_of(model, batch, "mean").item() for batch in ShardLoader(shards, **options, drop_last=False)]
        for options in ({"batch_size": 1}, {"batch_size": 36}, {"batch_size": 18, "rank": 1, "world_size": 2})
    ]
    assert abs(sum(means[0]) / 37 - sum(means[1]) / 2) > 1e-3
    assert math.isnan(means[2][-1])


def test_collating_batches_says_what_to_do(shards):
    words = r"yields batches already: give the DataLoader batch_size=None.* return it from get_train_dataloader"
    for options in ({"batch_size": 4}, {}, {"batch_size": 2, "drop_last": True}):
        with pytest.raises(ValueError, match=words):
            next(iter(DataLoader(ShardLoader(shards), **options)))
    loader = ShardLoader(shards, restart=True)
    for options in (
        {"shuffle": True},
        {"sampler": RandomSampler(loader)},
        {"batch_size": None, "sampler": DistributedSampler(loader, num_replicas=2, rank=0)},
    ):
        with pytest.raises(ValueError, match="DataLoader with IterableDataset"):
            DataLoader(loader, **options)
    batch = next(iter(loader))
    assert not hasattr(batch, "__dict__")
    assert "num_targets" in dir(batch)
    with pytest.raises(TypeError, match="__dict__"):
        vars(batch)
    assert torch.equal(next(iter(DataLoader(loader, batch_size=None))).input_ids, next(iter(loader)).input_ids)


@pytest.mark.slow
def test_a_trainer_that_gets_the_loader_as_a_data_set_says_what_to_do(shards, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; the extra `dev` has it")
    options = transformers.TrainingArguments(tmp_path, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = transformers.Trainer(
        nn.Linear(1, 1), options, train_dataset=ShardLoader(shards), eval_dataset=ShardLoader(shards)
    )
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match="return it from get_train_dataloader"):
            run()


@pytest.fixture
def recorder(shards):
    """Make Lightning modules that record the windows of each training epoch and of each validation."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed; the extra `dev` has it")

    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = nn.Linear(1, 1)
            self.epochs, self.validations = {}, []

        def train_dataloader(self):
            self.loader = ShardLoader(shards, batch_size=4, seed=1, restart=True)
            return self.loader

        def val_dataloader(self):
            return ShardLoader(shards, batch_size=8, shuffle="none", drop_last=False, restart=True)

        def on_train_start(self):  # a resume calls this hook alone
            self.loader.set_epoch(self.current_epoch)

        def on_train_epoch_start(self):
            self.loader.set_epoch(self.current_epoch)

        def training_step(self, batch, _):
            self.epochs.setdefault(self.current_epoch, []).append(batch.window_ids.tolist())
            return self.layers(torch.ones(1)).sum()

        def on_validation_epoch_start(self):
            self.validations.append([])

        def validation_step(self, batch, _):
            self.validations[-1].append(batch.window_ids.tolist())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Recorder


def lightning_trainer(**options):
    import lightning

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", **quiet, **options)


def epoch_of(shards, number, batches):
    """The first batches of an epoch, as a loader without `restart` reads them."""
    twin = ShardLoader(shards, batch_size=4, seed=1)
    twin.set_epoch(number)
    return [batch.window_ids.tolist() for batch in twin][:batches]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize(
    ("limits", "of_epoch", "of_validation"),
    [
        ({}, 9, 5),
        ({"limit_train_batches": 5, "limit_val_batches": 3, "val_check_interval": 2}, 5, 3),
        ({"limit_train_batches": 5, "reload_dataloaders_every_n_epochs": 1}, 5, 5),
        ({"overfit_batches": 2}, 2, 2),
    ],
)
def test_under_lightning_each_epoch_and_each_validation_has_the_batches_asked_for(
    shards, recorder, limits, of_epoch, of_validation
):
    every = [batch.window_ids.tolist() for batch in ShardLoader(shards, batch_size=8, shuffle="none", drop_last=False)]
    module = recorder()
    lightning_trainer(max_epochs=3, enable_checkpointing=False, **limits).fit(module)
    assert module.epochs == {number: epoch_of(shards, number, of_epoch) for number in range(3)}
    sanity_check, *validations = module.validations
    assert sanity_check == every[: min(2, of_validation)]
    assert len(validations) >= 3
    assert all(one == every[:of_validation] for one in validations)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_under_lightning_a_job_with_short_epochs_resumes_in_any_of_them(shards, recorder, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    short = {"max_steps": 15, "limit_train_batches": 5}
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    lightning_trainer(**short, callbacks=[keep], num_sanity_val_steps=0).fit(recorder())
    whole = [batch for number in range(3) for batch in epoch_of(shards, number, 5)]
    for step in (3, 5, 12):
        resumed = recorder()
        lightning_trainer(**short, enable_checkpointing=False).fit(resumed, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert [batch for number in sorted(resumed.epochs) for batch in resumed.epochs[number]] == whole[step:]


FULLY_SHARDED = """
    import sys, torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from pipeline import ShardLoader, TokenEmbedding, embed_batches

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = TokenEmbedding(257, 8, 12), nn.Linear(8, 257, bias=False)
            self.embedding.weight = self.head.weight

        def forward(self, ids, positions=None):
            return self.head(self.embedding(ids, positions))

    def step(model, batch):
        logits = model(batch.input_ids, batch.position_ids)
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.target_ids.flatten()).backward()

    torch.manual_seed(0)
    plain = Model()
    sharded = Model()
    sharded.load_state_dict(plain.state_dict())
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(sharded, mesh=mesh)
    loader = ShardLoader(sys.argv[1], batch_size=4, document_ids=True)
    try:
        next(iter(embed_batches(loader, sharded.embedding))).embeddings
    except ValueError as error:
        assert str(error).startswith("embedding: its weights are sharded over processes"), error
        print("refused")
    loader.set_epoch(1)
    step(sharded, next(iter(loader)))
    for rank in range(2):  # the ranks' gradients, one after the other
        other = ShardLoader(sys.argv[1], batch_size=4, document_ids=True, rank=rank, world_size=2)
        other.set_epoch(1)
        step(plain, next(iter(other)))
    for name, weight in sharded.named_parameters():
        mean = dict(plain.named_parameters())[name].grad / 2
        assert torch.allclose(weight.grad.full_tensor(), mean, atol=1e-6), name
    print("equal")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_weights_get_the_gradients_of_unsharded_ones_and_embed_in_the_model_alone(shards, tmp_path):
    file = tmp_path / "fully_sharded.py"
    file.write_text(textwrap.dedent(FULLY_SHARDED))
    for done in run_ranks("-W", "ignore", file, shards, ranks=2):
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["refused", "equal"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_a_compiled_model_embeds_in_its_forward_as_a_plain_one_does(shards, model):
    if not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a processor")
    compiled = torch.compile(model, fullgraph=True)
    for batch in ShardLoader(shards, batch_size=4):
        for one in (model, compiled):
            one.zero_grad()
            losses_of(one, batch, "mean").backward()
            gradients = [weight.grad.clone() for weight in model.parameters()]
            if one is model:
                expected = gradients
        for mine, other in zip(gradients, expected, strict=True):
            assert torch.allclose(mine, other, atol=1e-6)
