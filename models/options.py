"""Options of a batch for which OpenAI's create request has no field."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

OnLimit = Literal["pause", "stop"]
OnTruncated = Literal["keep", "fail"]
OnInvalidOutput = Literal["keep", "fail", "retry"]


class BatchOptions(BaseModel):
    """Rules for answers that are flawed, and for batches that keep failing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    on_truncated: OnTruncated = Field(
        default="keep",
        title="Truncated answers",
        description="Keep an answer that a token limit cut off and mark it as truncated, or let its request fail.",
    )
    on_invalid_output: OnInvalidOutput = Field(
        default="keep",
        title="Invalid output",
        description="Keep an answer that does not fit the JSON schema of its request and mark it as invalid "
        "output, let the request fail, or send it once more and let it fail if the second answer does not fit.",
    )
    max_identical_failures: int = Field(
        default=25,
        ge=1,
        le=1_000_000,
        title="Identical failures in a row",
        description="Stop sending to a model when this many different requests in a row have failed in the same "
        "way. Content filters, prompts that are too long, and marked answers do not count.",
    )
    on_limit: OnLimit = Field(
        default="pause",
        title="When a limit is reached",
        description="Pause the batch until someone resumes it, or stop it and keep the answers so far.",
    )

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, options: Any) -> Any:
        """Name the options that there are, which pydantic's own message does not."""
        unknown = (
            [name for name in options if name not in cls.model_fields] if isinstance(options, Mapping) else []
        )
        if unknown:
            raise ValueError(f"there is no option {str(unknown[0])[:80]!r}; give {', '.join(cls.model_fields)}")
        return options

    def with_default_on_limit(self, on_limit: OnLimit) -> Self:
        """Return the options with that `on_limit`, unless one was given."""
        return self if "on_limit" in self.model_fields_set else self.model_copy(update={"on_limit": on_limit})

    def given(self) -> dict[str, object]:
        """Return the options that were given, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


GivenOptions = Annotated[BatchOptions, PlainSerializer(lambda options: options.given())]
"""Options of which only those that were given are written, so that they are told apart from defaults when read."""
