"""Writing the results of a batch beside the folder that its file came from."""

from batchline.models.batches import BatchErrors
from batchline.models.status import TERMINAL
from batchline.steps.engine import Engine
from batchline.storage import layout
from batchline.storage.inbox import OUTBOX, Inbox
from batchline.storage.records import BatchRecord, SourceFile


def write_results(engine: Engine, inbox: Inbox, picked: SourceFile) -> bool:
    """Write the batch's output and error files to the outbox and note that; false where it runs again meanwhile.

    Written again after a crash, and by two rounds at once, they are the same.
    """
    batch = engine.records.get_batch(picked.batch_id)
    if batch.status not in TERMINAL:
        return False
    if batch.final_prefix is not None:
        _write_files(engine, inbox, picked, batch, batch.final_prefix)
    elif batch.errors:
        text = BatchErrors(data=list(batch.errors)).to_json()
        inbox.write(OUTBOX, f"{picked.place}.errors.json", [text])
    engine.records.note_written(batch.id, generation=batch.generation)
    return True


def _write_files(engine: Engine, inbox: Inbox, picked: SourceFile, batch: BatchRecord, prefix: str) -> None:
    output, errors, *_ = layout.final_keys(prefix)
    if batch.output_file_id is not None:
        inbox.write(OUTBOX, f"{picked.place}.output.jsonl", engine.store.stream(output))
    if batch.error_file_id is not None:
        inbox.write(OUTBOX, f"{picked.place}.errors.jsonl", engine.store.stream(errors))
    elif picked.written_generation is not None:  # of an earlier generation
        inbox.drop(OUTBOX, f"{picked.place}.errors.jsonl")
