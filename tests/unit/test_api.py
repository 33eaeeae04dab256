"""Paths: where everything is found."""

from __future__ import annotations

from he_protocol import api


def test_paths():
    task, root = "ab", "/v1/tasks/ab"
    assert api.task_path(task) == root
    assert api.model_path(task) == f"{root}/model"
    assert api.update_path(task, "01") == f"{root}/updates/01"
    assert api.key_parts_path(task, 3) == f"{root}/rounds/3/key-parts"
    assert api.round_path(task, 3) == f"{root}/rounds/3"
    assert api.openings_path(task) == f"{root}/openings"
    assert api.opening_path(task, 3) == f"{root}/rounds/3/opening"
    assert api.share_path(task, 3, "h") == f"{root}/rounds/3/shares/h"
    assert api.sum_path(task, 3) == f"{root}/rounds/3/sum"
    assert api.board_path(task, "reveal") == f"{root}/board/reveal"
    assert api.post_path(task, "reveal", "h") == f"{root}/board/reveal/h"
    assert api.PHASES == ("contribution", "commitment", "reveal", "confirmation")
