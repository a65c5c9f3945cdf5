"""Writes the results of a batch to the outbox of the watched folder that its file came from."""

from batchline.engine.services import Services
from batchline.models.batches import BatchErrors
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.objects import layout
from batchline.storage.records.store import SyncedFile
from batchline.sync.folder import OUTBOX_FOLDER, WatchedFolder


def write_results(services: Services, folder: WatchedFolder, synced_file: SyncedFile) -> bool:
    """Write the batch's output and error files to the outbox and record it; return False if it runs again.

    Repeating it after a crash, or in two passes at once, writes the same files.
    """
    batch, place = services.records.get_batch(synced_file.batch_id), synced_file.place
    if batch.status not in TERMINAL_STATUSES:
        return False
    if batch.final_prefix is not None:
        keys = layout.final_keys(batch.final_prefix)
        if batch.output_file_id is not None:
            folder.write_to_sibling(OUTBOX_FOLDER, f"{place}.output.jsonl", services.store.stream(keys.output))
        if batch.error_file_id is not None:
            folder.write_to_sibling(OUTBOX_FOLDER, f"{place}.errors.jsonl", services.store.stream(keys.errors))
        elif synced_file.written_generation is not None:  # a retry left no errors: delete the earlier file
            folder.delete_from_sibling(OUTBOX_FOLDER, f"{place}.errors.jsonl")
    elif batch.errors:
        errors_json = BatchErrors(data=list(batch.errors)).to_json()
        folder.write_to_sibling(OUTBOX_FOLDER, f"{place}.errors.json", [errors_json])
    # Recorded last, so that a pass after a crash writes the files again.
    services.records.note_written(batch.id, generation=batch.generation)
    return True
