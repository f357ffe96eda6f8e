"""Ids that training doesn't have: counted, and given the mean of their field's embeddings."""

import numpy as np
import torch

from recbole_escm2.model.embedding import fill_unseen
from recbole_escm2.quick_start import run


def test_ids_are_counted_wherever_they_stand(toy):
    n = np.arange(60)
    toy.table["tags:token_seq"] = [" ".join(f"t{k}" for k in range(i % 3)) for i in n]
    toy.write()
    users = {f"u{i}": ("f" if i < 2 else "m", "a b" if i else "a") for i in range(7)}
    toy.file("user").write_text(
        "user_id:token\tgender:token\tlikes:token_seq\n"
        + "".join(f"{user}\t{gender}\t{likes}\n" for user, (gender, likes) in users.items())
    )
    dataset = toy.dataset()
    counts = {
        field: dict(zip(dataset.field2id_token[field], count.tolist(), strict=True))
        for field, count in dataset.id_counts().items()
    }
    assert counts["user_id"] == {"[PAD]": 0, **{f"u{i}": 10 for i in range(6)}, "u6": 0}
    assert counts["gender"] == {"[PAD]": 0, "f": 20, "m": 40}
    assert counts["likes"] == {"[PAD]": 0, "a": 60, "b": 50}
    assert counts["tags"] == {"[PAD]": 0, "t0": 40, "t1": 20}
    assert counts["row"] == {"[PAD]": 0, **{f"r{i}": 1 for i in n}}


def test_unseen_ids_have_the_weighted_mean(toy, tmp_path):
    """In the checkpoint, in all tables of a field; what train has stays as it was learned."""
    toy.table["hour:token"] = [f"h{i % 4}" if i < 45 else f"late{i % 2}" for i in range(60)]
    settings = {
        "data_path": str(toy.data_path),
        "output_dir": str(tmp_path / "output"),
        **{"metrics": ["CTR_AUC"], "valid_metric": "CTR_AUC", "epochs": 1, "task": "ctr"},
        **toy.write_parts(30, 45),
    }
    outcome = run("DeepFM", "toy", config_dict=settings)
    state = torch.load(f"{outcome['run_dir']}/checkpoint.pth", weights_only=True)["state_dict"]
    dataset = toy.build("DeepFM", **{k: settings[k] for k in ("benchmark_filename", "task")})[0]
    count = dataset.seen_ids["hour"]
    tokens = list(dataset.field2id_token["hour"])
    unseen = [tokens.index("late0"), tokens.index("late1")]
    assert count[unseen].tolist() == [0, 0]
    checked = 0
    for name, table in state.items():
        if "token_embedding_table" in name and "seq" not in name:
            fields = [
                f for f in ("user_id", "item_id", "row", "hour") if f in dataset.field2id_token
            ]
            first = sum(len(dataset.field2id_token[f]) for f in fields[: fields.index("hour")])
            rows = table[first : first + len(tokens)]
            mean = (count / count.sum()).float() @ rows
            for id in unseen:
                assert torch.allclose(rows[id], mean, atol=1e-6)
            assert not torch.allclose(rows[tokens.index("h0")], mean, atol=1e-6)
            checked += 1
    assert checked == 2  # embeddings, and first-order weights


def test_a_field_that_train_has_nothing_of_is_left_alone():
    class Model(torch.nn.Module):
        pass

    fill_unseen(Model(), {"x": torch.tensor([3.0, 0.0])})


def test_nothing_is_filled_where_train_has_all(toy):
    toy.table = toy.table.drop(columns="row:token")
    assert toy.build(eval_args={"split": {"RS": [0.8, 0.1, 0.1]}})[0].seen_ids is None
