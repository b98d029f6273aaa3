"""examples/cifar10.py on a made data set of the same format: the real one is not at hand."""

import functools
import importlib.util
import pathlib
import random
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

PATH = pathlib.Path(__file__).parents[1] / "examples" / "cifar10.py"
SPEC = importlib.util.spec_from_file_location("cifar10", PATH)
cifar10 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cifar10)

pytestmark = pytest.mark.usefixtures("optax_promotion")  # Flax relies on it as well

NAMES = [f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
NUM_RECORDS = 40  # of a file


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Six files whose images are patterns of 4 x 4 squares, one for each label, and some noise."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 256, (10, 3, 4, 4))
    folder = tmp_path_factory.mktemp("made")
    for name in NAMES:
        labels = generator.permutation(np.arange(NUM_RECORDS) % 10)
        planes = np.kron(patterns[labels], np.ones((1, 1, 8, 8)))
        planes += generator.normal(0, 20, planes.shape)
        with open(folder / name, "wb") as file:
            for label, image in zip(labels, planes.clip(0, 255).astype(np.uint8), strict=True):
                file.write(bytes([label]) + image.tobytes())
    return folder


@pytest.fixture
def at_full_length():
    return {name: make(lambda steps: steps) for name, make in cifar10.SETUPS.items()}


# ----------------------------------------------------------------------------------------- data


def test_the_reader_finds_labels_and_planes_where_the_format_has_them(folder):
    train, test = cifar10.load(folder)
    assert train.images.shape == (5 * NUM_RECORDS, 32, 32, 3)
    assert test.images.shape == (NUM_RECORDS, 32, 32, 3)
    picker = random.Random(0)
    for data, names in ((train, NAMES[:5]), (test, NAMES[5:])):
        content = b"".join((folder / name).read_bytes() for name in names)
        images, labels = np.asarray(data.images), np.asarray(data.labels)
        assert labels.tolist() == list(content[:: 1 + 3072])
        for _ in range(1000):
            record = picker.randrange(len(labels))
            row, column, channel = (picker.randrange(end) for end in (32, 32, 3))
            byte = 3073 * record + 1 + 1024 * channel + 32 * row + column
            assert images[record, row, column, channel] == content[byte]
    for data in (train, test):  # the mean to train on, for both
        np.testing.assert_allclose(data.mean[0], np.mean(train.images, axis=0), rtol=1e-5)


def test_batches_take_the_images_in_turn_and_mirror_half_of_them(folder, at_full_length):
    data, _ = cifar10.load(folder)
    centred = np.asarray(data.images, np.float32) - np.asarray(data.mean)
    key = jax.random.key(0)
    images, labels = cifar10.batch_at(at_full_length["quick"], key, data, jnp.int32(3))
    rows = np.arange(300, 400) % 200
    np.testing.assert_array_equal(labels, np.asarray(data.labels)[rows])
    np.testing.assert_allclose(images, centred[rows], atol=1e-4)

    images, _ = cifar10.batch_at(at_full_length["super-convergence"], key, data, jnp.int32(0))
    assert len(images) == 1000
    straight, mirrored = (
        np.isclose(images, each[np.arange(1000) % 200], atol=1e-4).all((1, 2, 3))
        for each in (centred, centred[:, :, ::-1])
    )
    assert np.all(straight ^ mirrored)
    assert 400 < mirrored.sum() < 600  # six standard deviations


def spoil(folder, name, content):
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "data_batch_4.bin").unlink(), ["data_batch_4.bin", "not exist"]),
        (lambda folder: spoil(folder, "test_batch.bin", bytes(3072)), ["test_batch.bin", "3,072"]),
        (lambda folder: spoil(folder, "test_batch.bin", b""), ["test_batch.bin", "has 0 bytes"]),
        (
            lambda folder: spoil(folder, "data_batch_1.bin", bytes(3073) + b"\x0a" + bytes(3072)),
            ["data_batch_1.bin", "label 10 in record 1", "0 to 9"],
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, change, expected):
    for name in NAMES:
        spoil(tmp_path, name, bytes(3073))
    cifar10.load(tmp_path)
    change(tmp_path)
    with pytest.raises(
        (FileNotFoundError, ValueError), match=r"cifar-10-binary\.tar\.gz"
    ) as raised:
        cifar10.load(tmp_path)
    assert all(part in str(raised.value) for part in expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none", "full"], "data_batch_1.bin does not exist. Unpack cifar-10-binary.tar.gz"),
        *((["none", "quick", "--scale", scale], "from 0.001 to 1") for scale in ("0", "2", "nan")),
    ],
)
def test_a_missing_folder_and_a_bad_scale_are_refused(monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["cifar10.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cifar10.main()
    assert expected in " ".join(capsys.readouterr().err.split())


# --------------------------------------------------------------------------------- the policies


@pytest.mark.parametrize(
    ("setup", "number", "values"),
    [
        # Caffe's cifar10_full_solver, _lr1 and _lr2.
        ("quick", 0, {0: 1e-3, 59_999: 1e-3, 60_000: 1e-4, 64_999: 1e-4, 65_000: 1e-5}),
        # Table 2 of 1506.01186: cycles of 4,000 from step 0, of 2,000 from step 16,000, of 1,000
        # from step 22,000, the height of each half of that before.
        (
            "quick",
            1,
            {0: 1e-3, 2000: 5e-3, 6000: 3e-3, 14_000: 1.5e-3, 15_999: 1.00025e-3}
            | {16_000: 1e-4, 17_000: 5e-4, 19_000: 3e-4, 22_000: 1e-5, 22_500: 5e-5, 23_500: 3e-5},
        ),
        ("full", 2, {0: 1e-3, 1000: 3.5e-3, 2000: 6e-3, 4000: 1e-3, 6000: 3.5e-3, 10_000: 2.25e-3}),
        # The authors' solver.prototxt.
        ("super-convergence", 0, {0: 0.35, 49_999: 0.35, 50_000: 0.035, 70_000: 0.0035}),
        # Lines of their log of figure 1a: "Iteration 9600, lr = 0.332", and so on.
        ("super-convergence", 1, {0: 0.1, 5000: 3.0, 9600: 0.332, 9700: 0.274, 9900: 0.158}),
    ],
)
def test_the_policies_are_those_of_the_papers(at_full_length, setup, number, values):
    schedule = at_full_length[setup].runs[number].schedule
    for step, value in values.items():
        np.testing.assert_allclose(schedule(step), value, rtol=1e-5)


def test_lengths_and_batches_are_those_of_the_papers(at_full_length):
    lengths = {
        name: [run.num_steps for run in setup.runs] for name, setup in at_full_length.items()
    }
    assert lengths["quick"] == lengths["full"] == [70_000, 25_000, 25_000]
    assert lengths["super-convergence"] == [80_000, 10_000]
    batches = {name: setup.batch_size for name, setup in at_full_length.items()}
    assert batches == {"quick": 100, "full": 100, "super-convergence": 1000}


# --------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("quick", 5 * 5 * (3 * 32 + 32 * 32 + 32 * 64) + 128 + 1024 * 64 + 64 + 64 * 10 + 10),
        ("full", 5 * 5 * (3 * 32 + 32 * 32 + 32 * 64) + 128 + 1024 * 10 + 10),
        (
            "super-convergence",
            # Two 3 x 3 convolutions to a block, scale and offset after each; the first block of the
            # second and third part has the width of the part before it.
            (9 * 3 * 16 + 32)
            + 10 * 2 * (9 * 16 * 16 + 32)
            + 9 * 2 * (9 * 32 * 32 + 64)
            + 8 * 2 * (9 * 64 * 64 + 128)
            + (64 * 10 + 10),
        ),
    ],
)
def test_the_networks_have_the_known_numbers_of_parameters(at_full_length, setup, expected):
    assert expected == {"quick": 145_578, "full": 89_578, "super-convergence": 806_746}[setup]
    for run in at_full_length[setup].runs:
        params, _, _ = jax.eval_shape(
            lambda network=run.network: cifar10.new_state(
                network, optax.sgd(0.1), jax.random.key(0)
            )
        )
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
        # A multiplier for a parameter that is not there would be one that is not applied.
        paths = jax.tree_util.tree_flatten_with_path(params)[0]
        names = {"/".join(part.key for part in path) for path, _ in paths}
        assert names >= set(at_full_length[setup].multipliers)


def test_pooling_and_normalization_do_at_the_edges_what_caffe_does():
    images = np.random.default_rng(0).normal(0, 100, (1, 8, 8, 2)).astype(np.float32)
    pooled = cifar10.average_pool(jnp.asarray(images))
    assert pooled.shape == (1, 4, 4, 2)
    normalized = cifar10.normalized_response(jnp.asarray(images))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, column in np.ndindex(4, 4):
        window = images[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]  # less at the edge
        np.testing.assert_allclose(pooled[0, row, column], window.mean((0, 1)), rtol=1e-4)
    for row, column in np.ndindex(8, 8):
        squares = (padded[0, row : row + 3, column : column + 3] ** 2).sum((0, 1)) / 9
        expected = images[0, row, column] / (1 + 5e-5 * squares) ** 0.75
        np.testing.assert_allclose(normalized[0, row, column], expected, rtol=1e-4)


# ---------------------------------------------------------------------------------- the training


def test_the_optimizer_takes_the_steps_of_caffe(at_full_length):
    rates = [0.5, 0.1, 0.02]
    setup = at_full_length["full"]
    optimizer = cifar10.caffe_sgd(setup, lambda step: jnp.asarray(rates)[step])
    params = {"Dense_0": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "Conv_2": jnp.ones(1)}
    factors = {"kernel": (1, 250), "bias": (2, 0), "Conv_2": (1, 1)}  # of the rate and the decay
    state = optimizer.init(params)
    weights, history = dict.fromkeys(factors, 1.0), dict.fromkeys(factors, 0.0)
    for number, rate in enumerate(rates):
        gradient = 1.0 - number
        gradients = jax.tree.map(lambda leaf, g=gradient: jnp.full_like(leaf, g), params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, (rate_factor, decay_factor) in factors.items():
            regularized = gradient + 0.004 * decay_factor * weights[name]
            history[name] = 0.9 * history[name] + rate * rate_factor * regularized
            weights[name] -= history[name]
    got = {**params["Dense_0"], "Conv_2": params["Conv_2"]}
    for name, weight in weights.items():
        np.testing.assert_allclose(got[name][0], weight, rtol=1e-5)


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(10)(nn.BatchNorm(not train, momentum=0.5)(images.mean((1, 2))))


def test_batchnorm_normalizes_each_group_by_itself(folder, at_full_length):
    setup = at_full_length["super-convergence"]._replace(batch_size=40)
    optimizer = cifar10.caffe_sgd(setup, 0.1)
    state = cifar10.new_state(Small(), optimizer, jax.random.key(0))
    data, _ = cifar10.load(folder)
    images, labels = cifar10.batch_at(setup, jax.random.key(1), data, 0)

    @functools.partial(jax.jit, static_argnums=0)
    def step(num_groups, batch):
        in_groups = setup._replace(num_groups=num_groups)
        (params, statistics, _), loss = cifar10.train_step(
            in_groups, Small(), optimizer, state, batch
        )
        return params, statistics, loss

    parts = [step(1, (images[half], labels[half])) for half in (slice(20), slice(20, 40))]
    expected = jax.tree.map(lambda first, second: (first + second) / 2, *parts)
    together, apart = (step(num_groups, (images, labels)) for num_groups in (1, 2))
    for got, wanted in zip(jax.tree.leaves(apart), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert abs(together[2] - apart[2]) > 1e-4


def shortened(setup):
    """Return the set-up short enough for a CPU: the first run, of a ResNet of three blocks."""
    run = setup.runs[0]._replace(num_steps=6)
    if setup.num_groups > 1:
        run = run._replace(network=cifar10.ResNet(0.5, num_blocks=1))
        setup = setup._replace(num_groups=2)
    return setup._replace(runs=[run], batch_size=10 * setup.num_groups, num_test_steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quick", "super-convergence"])
def test_a_set_up_trains_and_prints_its_table(folder, monkeypatch, capsys, name):
    make = cifar10.SETUPS[name]
    monkeypatch.setitem(cifar10.SETUPS, name, lambda scaled: shortened(make(scaled)))
    monkeypatch.setattr(sys, "argv", ["cifar10.py", str(folder), name, "--scale", "0.001"])
    cifar10.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "200 images to train on, 40 to test with."
    assert lines[1].startswith("Range test: 4 rows, learning rate 1e-05 to ")
    assert any(line.startswith("The paper cycles between ") for line in lines)
    log = [line for line in lines if line.startswith("step ")]
    assert len(log) == 6
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in log]
    assert losses[-1] < losses[0] - 0.1
    run = make(round).runs[0]
    row = next(line for line in lines if line.startswith(run.name) and "%" in line)
    assert row.split()[-4:-1] == ["6", log[-1].split()[-1], run.reported]
