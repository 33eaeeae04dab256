"""Paths: where everything is found."""

from __future__ import annotations

from he_protocol import paths


def test_paths():
    task, root = "ab", "/v1/tasks/ab"
    assert paths.task_path(task) == root
    assert paths.model_path(task) == f"{root}/model"
    assert paths.update_path(task, "01") == f"{root}/updates/01"
    assert paths.key_sections_path(task, 3) == f"{root}/rounds/3/key-sections"
    assert paths.round_path(task, 3) == f"{root}/rounds/3"
    assert paths.openings_path(task) == f"{root}/openings"
    assert paths.opening_path(task, 3) == f"{root}/rounds/3/opening"
    assert paths.share_path(task, 3, "h") == f"{root}/rounds/3/shares/h"
    assert paths.sum_path(task, 3) == f"{root}/rounds/3/sum"
    assert paths.board_path(task, "reveal") == f"{root}/board/reveal"
    assert paths.post_path(task, "reveal", "h") == f"{root}/board/reveal/h"
