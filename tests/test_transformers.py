"""Models of Hugging Face's transformers train as they are: random ones, as small as they can be."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dasktrain as dt
from dasktrain.errors import BadInput
from dasktrain.plan import Plan, rows_only
from tests import small
from tests.reference import trained_digest
from tests.test_text import CONTEXT, END, FRAME, VERSE, computed

transformers = pytest.importorskip("transformers")
SIZE, PAD = 259, 256
BATCH, SHARDS, EPOCHS = 5, 4, 2


pytestmark = pytest.mark.usefixtures("one_thread")


def gpt2(schema: Any = None) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=SIZE, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def bert(schema: Any = None, labels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=SIZE,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=labels,
    )
    return transformers.BertForSequenceClassification(config)


def t5(schema: Any = None) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=SIZE,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=257,
        pad_token_id=PAD,
    )
    return transformers.T5ForConditionalGeneration(config)


DATA: dict[str, tuple[Any, dict[str, str], Any, Any]] = {
    "gpt2": (gpt2, {}, dt.text.cross_entropy, dt.text.token_accuracy),
    "bert": (bert, {"label": "kind"}, nn.CrossEntropyLoss(), dt.accuracy),
    "t5": (t5, {"into": "back"}, dt.text.cross_entropy, dt.text.token_accuracy),
}
every = pytest.mark.parametrize(("build", "fields", "loss", "metric"), DATA.values(), ids=DATA.keys())


def fit(build: Any, fields: dict[str, str], loss: Any, metric: Any, workers: int = 1, **other: Any) -> dt.Result:
    data = dt.Text(FRAME, "line", **fields, context=CONTEXT)
    settings = {"model": build(), "loss": loss, "metrics": {"accuracy": metric}, "epochs": EPOCHS, "shards": SHARDS}
    return small.fit(data, dt.LocalWire(workers), **(settings | {"batch_size": BATCH} | other))


@every
def test_model_is_the_same_on_any_number_of_workers(build: Any, fields: Any, loss: Any, metric: Any) -> None:
    one, two = (fit(build, fields, loss, metric, workers) for workers in (1, 2))
    assert one.digest == two.digest
    assert type(one.model) is type(build())


@every
def test_model_learns_and_is_validated(build: Any, fields: Any, loss: Any, metric: Any) -> None:
    validation = dt.Text(FRAME, "line", **fields, context=CONTEXT)
    adam = partial(torch.optim.AdamW, lr=0.01)
    history = fit(build, fields, loss, metric, optimizer=adam, validation=validation, epochs=4).history
    assert history[-1]["valid_loss"] < history[0]["valid_loss"]
    assert 0 < history[-1]["valid_accuracy"] <= 1


def test_language_model_has_the_bits_of_a_plain_loop() -> None:
    partitions = [VERSE[start : start + 2] for start in range(0, 16, 2)]  # as pandas is cut
    streams = [[token for text in part if text for token in [*text.encode(), END]] for part in partitions]
    stream = [token for part in streams for token in part]
    rows = [stream[start : start + CONTEXT + 1] for start in range(0, len(stream) - 1, CONTEXT)]
    ends = np.cumsum([0, *map(len, streams)])
    counts = np.histogram(np.arange(len(rows)) * CONTEXT, ends)[0].tolist()

    def loss(model: nn.Module, chosen: np.ndarray) -> tuple[Tensor, float]:
        padded = torch.tensor([rows[row] + [PAD] * (CONTEXT + 1 - len(rows[row])) for row in chosen])
        wanted = torch.tensor([rows[row][1:] + [-100] * (CONTEXT + 1 - len(rows[row])) for row in chosen])
        logits = model(padded[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum"), float((wanted >= 0).sum())

    expected = trained_digest(Plan(rows_only(counts), SHARDS, BATCH), gpt2, small.SGD, EPOCHS, loss)
    assert fit(*DATA["gpt2"]).digest == expected


def test_classifier_predicts_what_it_says_of_each_text_alone() -> None:
    result = fit(*DATA["bert"], optimizer=partial(torch.optim.AdamW, lr=0.01))
    with torch.no_grad():
        tokens = [torch.tensor([list(text.encode())[:CONTEXT] or [END]]) for text in VERSE]
        expected = torch.cat([result.model(text).logits for text in tokens]).softmax(dim=1)
    np.testing.assert_allclose(computed(result.predict_proba(FRAME)), expected, atol=1e-6)
    assert computed(result.predict(FRAME)).tolist() == [
        ["long", "middle", "short"][place] for place in expected.argmax(dim=1).tolist()
    ]
    assert result.evaluate(dt.Text(FRAME, "line", "kind", context=CONTEXT), {"accuracy": dt.accuracy})[
        "accuracy"
    ] == pytest.approx(np.mean(computed(result.predict(FRAME)).to_numpy() == FRAME["kind"].to_numpy()))


@every
def test_saved_model_is_loaded_into_a_new_one(build: Any, fields: Any, loss: Any, metric: Any, tmp_path: Any) -> None:
    result = fit(build, fields, loss, metric)
    result.save(str(tmp_path))
    back = dt.load(str(tmp_path), build)
    assert back.digest == result.digest
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], tensor)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_writing_is_left_to_the_models_own_way(name: str) -> None:
    result = fit(*DATA[name], max_rounds=1)
    with pytest.raises(BadInput, match=r"of transformers, takes other arguments; call result\.model\.generate"):
        result.generate(["to be"])
