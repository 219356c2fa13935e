"""What a visitor has, and for how long."""

import threading
import types

import numpy as np
import pytest
from helpers_page import SIZE, disc, encoded, painting

from fsseg_jax.errors import UserError
from fsseg_jax.page import export, limits, segmenting, session
from fsseg_jax.page.session import Session, Sessions
from fsseg_jax.prediction.calibration import CrossValidation, plain
from fsseg_jax.prediction.fitted import Fitted

INSIDE = disc((200, 150), 60)
STROKE = np.where(disc((200, 150), 9), 2, 254).astype(np.uint8)


@pytest.fixture
def visitor(tmp_path):
    return Session(tmp_path / "session")


def add(visitor, tmp_path, name="a.png"):
    upload = tmp_path / "upload"
    upload.write_bytes(encoded(painting(INSIDE)))
    return visitor.add(upload, name)


def test_supports_are_what_is_marked(visitor, tmp_path):
    visitor.name_classes({"1": "a", "2": "b"})
    with pytest.raises(UserError, match="Nothing is marked"):
        visitor.supports()
    first, second, third = (add(visitor, tmp_path) for _ in range(3))
    visitor.mark(first.number, STROKE.tobytes(), rest=False, boxed=False)
    visitor.mark(second.number, STROKE.tobytes(), rest=True, boxed=False)
    nothing = np.where(INSIDE, 0, 254).astype(np.uint8)  # no class, just background
    visitor.mark(third.number, nothing.tobytes(), rest=False, boxed=False)
    stroke, whole = visitor.supports()
    np.testing.assert_array_equal(stroke.label, STROKE)
    np.testing.assert_array_equal(whole.label, np.where(STROKE == 2, 2, 0))
    np.testing.assert_array_equal(stroke.image, painting(INSIDE))
    assert session.names_of(visitor.classes, [stroke, whole]) == {2: "b"}
    assert [p.background for p in visitor.pictures.values()] == [False, True, True]
    visitor.mark(third.number, nothing.tobytes(), rest=True, boxed=False)  # all of it is background
    assert not visitor.supports()[2].label.any()


def test_names_of_classes_are_as_they_are_typed_but_for_control_characters(visitor):
    names = ["\u0645\u06cc\u200c\u062e", "👩\u200d🔬", "ein\u00a0Wort", "a\nb\x00\ud800"]
    visitor.name_classes({str(n): name for n, name in enumerate(names, 1)})
    assert [*visitor.classes.values()] == [*names[:3], "a_b__"]


def test_marks_of_a_class_go_with_it(visitor, tmp_path):
    visitor.name_classes({"1": "a", "2": "b"})
    picture = add(visitor, tmp_path)
    visitor.mark(picture.number, STROKE.tobytes(), rest=True, boxed=True)
    version = visitor.version
    visitor.name_classes({"1": "other"})
    assert not picture.has_marks
    assert not picture.rest
    assert visitor.version > version  # predictions are of before
    assert not visitor.file(picture.number, "marks").exists()
    visitor.name_classes({"2": "b"})
    assert (visitor.marks(picture) == 254).all()


def test_predictions_of_a_class_go_with_it(visitor, tmp_path):
    visitor.name_classes({"1": "a", "2": "b"})
    picture = add(visitor, tmp_path)
    planes = np.random.default_rng(0).integers(0, 3, (3, *SIZE[::-1])).astype(np.uint8)
    visitor.keep(picture, planes, 0.5, visitor.version)
    visitor.name_classes({"1": "a"})
    visitor.name_classes({"1": "a", "2": "another"})
    mask, best, probability = visitor.planes(picture)
    np.testing.assert_array_equal(mask, np.where(planes[0] == 2, 0, planes[0]))
    np.testing.assert_array_equal(probability, np.where(planes[1] == 2, 0, planes[2]))
    np.testing.assert_array_equal(best, planes[1])


def test_a_removed_image_leaves_nothing_and_is_not_written_again(visitor, tmp_path):
    picture = add(visitor, tmp_path)
    visitor.mark(picture.number, np.where(STROKE == 2, 1, 254).astype(np.uint8), False, False)
    visitor.remove(picture.number)
    planes = np.zeros((3, *SIZE[::-1]), np.uint8)
    visitor.keep(picture, planes, 0.5, visitor.version)  # which was in work
    assert [*(tmp_path / "session").iterdir()] == []


def test_who_has_not_been_seen_for_long_goes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    sessions = Sessions(tmp_path)
    old, kept = sessions.new(), sessions.new()
    now[0] = limits.KEPT - 1
    assert sessions.get(kept)
    now[0] = limits.KEPT + 1
    new = sessions.new()
    assert sessions.get(old) is None
    assert sessions.get(kept)
    assert sessions.get(new)
    assert len([*tmp_path.iterdir()]) == 2


def test_there_are_so_many_visitors_and_those_with_images_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "VISITORS", 2)
    sessions = Sessions(tmp_path / "page")
    (tmp_path / "page").mkdir()
    first, second = sessions.new(), sessions.new()
    add(sessions.get(first), tmp_path)
    third = sessions.new()
    assert sessions.get(second) is None  # which had no image
    add(sessions.get(third), tmp_path)
    with pytest.raises(UserError, match="has 2 visitors"):
        sessions.new()


def test_what_examples_tell_is_the_mean_threshold_and_how_well_each_is_predicted():
    validation = CrossValidation((51.0, 73.0), (0, 1), 62.04, 51.4, 72.6)
    calibration = plain(2)._replace(thresholds=np.array([0.5, 0.7]))
    fitted = Fitted(None, None, None, calibration, validation)
    told = segmenting.told(types.SimpleNamespace(fitted=fitted))
    assert told["threshold"] == pytest.approx(0.6)
    assert told["validation"] == "Leaving one out: 62.0 mean IoU (51 to 73) of 2 images"
    fitted = fitted._replace(validation=validation._replace(ious=(51.0,)))
    assert segmenting.told(types.SimpleNamespace(fitted=fitted))["validation"] is None


def test_visitors_take_turns(visitor, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenting, "PATIENCE", 0.01)
    monkeypatch.setattr(segmenting, "_one_by_one", lock := threading.Lock())
    picture = add(visitor, tmp_path)
    visitor.mark(picture.number, np.where(STROKE == 2, 1, 254).astype(np.uint8), False, False)
    lock.acquire()
    monkeypatch.setattr(visitor, "supports", None)  # which take memory
    waiting = segmenting.find(visitor, None)
    assert next(waiting) == {"waiting": True}
    waiting.close()
    lock.release()
    assert not lock.locked()


def test_one_image_is_in_memory_at_the_size_of_its_upload(visitor, tmp_path, monkeypatch):
    read = session.as_image

    def noted(*arguments):
        held.append(session.large_image.locked())
        return read(*arguments)

    held = []
    monkeypatch.setattr(session, "as_image", noted)
    picture = add(visitor, tmp_path)
    assert held == [True]
    assert not session.large_image.locked()
    visitor.mark(picture.number, INSIDE.astype(np.uint8).tobytes(), rest=True, boxed=False)
    monkeypatch.setattr(
        export, "enlarged", lambda mask, _: held.append(session.large_image.locked()) or mask
    )
    export.archive(visitor, None)
    assert held == [True, True]
