"""What an outage of the store says on stderr: at once, then every few minutes, then its end."""

import pytest

from open_llm_proxy.queue.uploads import REASONS_AT_ONCE, REMINDER_SECONDS, UploadCounts

WHY = "s3://logs/ answered 404 NoSuchBucket: the bucket does not exist; create it"


def test_an_outage_is_told_at_once_and_then_every_few_minutes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = UploadCounts()
    for second in range(int(2 * REMINDER_SECONDS)):
        counts.failed(WHY, float(second))
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"Upload failed and will be tried again: {WHY}",
        f"Uploads have failed for 5 min (301 failures): {WHY}",
    ]
    caplog.clear()
    counts.succeeded("s3://logs/", 3, 100)
    counts.failed(WHY, 1000.0)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "Uploads to s3://logs/ work again, after 600 failures"
    assert told[1] == f"Upload failed and will be tried again: {WHY}"
    assert counts.upload_failures == 601


def test_reasons_that_alternate_are_told_once_each_and_not_without_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = UploadCounts()
    for number in range(200):
        counts.failed(f"reason {number % 2}", 0.0)
    assert len(caplog.records) == 2
    for number in range(200):
        counts.failed(f"another reason {number}", 0.0)
    assert len(caplog.records) == REASONS_AT_ONCE
