"""The progress bar."""

from recipe.intake.progress import Progress


def test_a_bar_is_shown_past_two_seconds(capsys):
    progress = Progress()
    progress.step("x.csv", 0.1)
    assert progress.bar is None
    progress.began -= 2.1
    progress.step("x.csv", 0.5)
    progress.stop()
    assert progress.bar is not None
    assert progress.bar.tasks[0].completed == 0.5
