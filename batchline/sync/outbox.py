"""Writes the results of a batch to the outbox of the watched folder that its file came from."""

from batchline.engine.services import Services
from batchline.models.batches import BatchErrors
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord, SyncedFile
from batchline.sync.folder import OUTBOX_FOLDER, WatchedFolder


def write_results(services: Services, folder: WatchedFolder, synced_file: SyncedFile) -> bool:
    """Write the batch's output and error files to the outbox and record it; return False if it runs again.

    Repeating it after a crash, or in two passes at once, writes the same files.
    """
    batch = services.records.get_batch(synced_file.batch_id)
    if batch.status not in TERMINAL_STATUSES:
        return False
    if batch.final_prefix is not None:
        _write_result_files(services, folder, synced_file, batch, batch.final_prefix)
    elif batch.errors:
        errors_json = BatchErrors(data=list(batch.errors)).to_json()
        folder.write_to_sibling(OUTBOX_FOLDER, f"{synced_file.place}.errors.json", [errors_json])
    # Recorded last, so that a pass after a crash writes the files again.
    services.records.note_written(batch.id, generation=batch.generation)
    return True


def _write_result_files(
    services: Services, folder: WatchedFolder, synced_file: SyncedFile, batch: BatchRecord, final_prefix: str
) -> None:
    output_key, errors_key, *_ = layout.final_keys(final_prefix)
    if batch.output_file_id is not None:
        folder.write_to_sibling(
            OUTBOX_FOLDER, f"{synced_file.place}.output.jsonl", services.store.stream(output_key)
        )
    if batch.error_file_id is not None:
        folder.write_to_sibling(
            OUTBOX_FOLDER, f"{synced_file.place}.errors.jsonl", services.store.stream(errors_key)
        )
    elif synced_file.written_generation is not None:  # a retry left no errors: delete the earlier file
        folder.delete_from_sibling(OUTBOX_FOLDER, f"{synced_file.place}.errors.jsonl")
