"""All errors of the product.

One class a code, the stable, public name of the error (``error.type`` in JSON); ``docs/errors.md`` explains each.

    MlxkError
    ├── UsageError                 usage_error
    ├── ValidationError            validation_error
    ├── ModelNotFoundError         model_not_found
    ├── AmbiguousModelError        ambiguous_match
    ├── RevisionNotFoundError      hash_not_found
    ├── StorageError               storage_error
    ├── UnhealthyModelError        model_unhealthy
    ├── IncompatibleModelError     incompatible_model
    ├── UntrustedModelCodeError    untrusted_model_code
    ├── BackendNotInstalledError   backend_not_installed
    ├── CapabilityError            capability_not_supported
    ├── ContextLengthError         context_length_exceeded
    ├── InsufficientMemoryError    insufficient_memory
    ├── QueueFullError             queue_full
    ├── FeatureGateError           feature_disabled
    ├── AccessDeniedError          access_denied
    ├── NetworkError               network_error
    ├── DownloadFailedError        download_failed
    ├── UploadFailedError          upload_failed
    ├── RequiresConfirmationError  requires_confirmation
    ├── LocksPresentError          locks_present
    ├── WorkspaceModelError        workspace_model
    ├── SecretsFoundError          secrets_found
    ├── ConversionFailedError      conversion_failed
    ├── ExecutionError             execution_error
    ├── InterruptedRunError        interrupted
    ├── ParameterNotSupportedError parameter_not_supported
    ├── NotFoundError              not_found
    ├── MethodNotAllowedError      method_not_allowed
    ├── UnsupportedMediaTypeError  unsupported_media_type
    ├── PayloadTooLargeError       payload_too_large
    ├── RequestTimeoutError        request_timeout
    ├── UnauthorizedError          unauthorized
    ├── ForbiddenOriginError       forbidden_origin
    ├── ServerShutdownError        server_shutdown
    ├── RankLostError              rank_lost
    ├── PortInUseError             port_in_use
    └── InternalError              internal_error
"""

import enum
from collections.abc import Mapping
from typing import ClassVar, Self

import attrs


class Remedy(enum.Enum):
    """What a user can do about an error. Each entrypoint has its own sentence for each remedy."""

    ALLOW_MEDIA_PATHS = "allow-media-paths"
    ALLOW_REMOTE_MEDIA = "allow-remote-media"
    ALLOW_VOICE_CLONING = "allow-voice-cloning"
    ACCEPT_CHANGES = "accept-changes"
    ALLOW_SECRET = "allow-secret"
    CHECK_HEALTH = "check-health"
    CLONE_UNCHECKED = "clone-unchecked"
    COMPLETE_OR_REMOVE = "complete-or-remove"
    CONFIRM_PRUNING = "confirm-pruning"
    CONFIRM_REMOVAL = "confirm-removal"
    CREATE_REPOSITORY = "create-repository"
    DROP_TURNS = "drop-turns"
    EXAMINE = "examine"
    FETCH = "fetch"
    FETCH_AGAIN = "fetch-again"
    FETCH_BEFORE_CONVERTING = "fetch-before-converting"
    FETCH_OR_USE_CLOSE_NAME = "fetch-or-use-close-name"
    FUSE_FIRST = "fuse-first"
    FIND_CONVERSION = "find-conversion"
    LEAVE_OUT_REASONING = "leave-out-reasoning"
    LEAVE_OUT_TOOLS = "leave-out-tools"
    LIST_ALL = "list-all"
    LIST_CAPABLE_MODELS = "list-capable-models"
    MAKE_MANAGED = "make-managed"
    MAKE_MANAGED_BY_CLONING = "make-managed-by-cloning"
    NAME_SERVED_MODEL = "name-served-model"
    NAME_WITH_OWNER = "name-with-owner"
    PUBLISH_OPENLY = "publish-openly"
    REPAIR_INDEX = "repair-index"
    ROUND_LESS = "round-less"
    RESUME_TRAINING = "resume-training"
    SMALLER_GROUPS = "smaller-groups"
    TRAIN_LESS_AT_ONCE = "train-less-at-once"
    TRUNCATE_INPUT = "truncate-input"
    UNLOAD_FIRST = "unload-first"
    USE_CHAT = "use-chat"
    USE_CLOSE_NAME = "use-close-name"
    USE_COMPLETIONS = "use-completions"
    USE_EMBEDDINGS = "use-embeddings"
    USE_RERANKING = "use-reranking"
    USE_SPEECH = "use-speech"
    USE_NAME_OF_HUB = "use-name-of-hub"
    USE_PATH = "use-path"
    USE_TRANSCRIPTION = "use-transcription"
    USE_TRANSLATING_MODEL = "use-translating-model"


@attrs.frozen
class Advice:
    """A remedy and the values in its sentence; each entrypoint words the sentence for its users."""

    remedy: Remedy
    values: Mapping[str, str] = attrs.field(factory=dict)
    """Placeholder of the sentence to its text, such as ``name`` to the name of a model."""


class MlxkError(Exception):
    """An error with a stable code, a message, and optionally a hint.

    Args:
        message: One sentence that names what is at fault; no absolute path unless typed, no prompt text, no token.
        hint: What to do next: a sentence, or an ``Advice`` where the sentence depends on the entrypoint.
        matches: The names that an ambiguous reference matches, sorted.
        detail: Numbers and names for programs, JSON values only.
        options: Words of the message that are options of the request; each entrypoint spells them its own way.
        fix: How to repair the reported damage.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | Advice | None = None,
        matches: tuple[str, ...] = (),
        detail: Mapping[str, object] | None = None,
        options: tuple[str, ...] = (),
        fix: Remedy | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.matches = matches
        self.detail = dict(detail) if detail else None
        self.options = options
        self.fix = fix

    @classmethod
    def in_field(cls, field: str, message: str, *, hint: str | Advice | None = None) -> Self:
        """Return an error about one field of a request; ``detail`` names the field for programs.

        Args:
            field: Path of the field, such as ``messages[0].content``.
            message: The fault, without the name of the field.
            hint: What to do next.
        """
        return cls(f"{field}: {message}", hint=hint, detail={"problems": [{"param": field, "message": message}]})


class UsageError(MlxkError):
    """The command line is invalid: an unknown flag, a missing argument, or two that exclude each other."""

    code = "usage_error"


class ValidationError(MlxkError):
    """A value is not allowed; the message names the field."""

    code = "validation_error"


class ModelNotFoundError(MlxkError):
    """No model on this machine, or on the hub for a download, matches the reference."""

    code = "model_not_found"


class AmbiguousModelError(MlxkError):
    """A model reference matches several models; ``matches`` lists them, sorted."""

    code = "ambiguous_match"


class RevisionNotFoundError(MlxkError):
    """The model exists but the requested revision does not."""

    code = "hash_not_found"


class StorageError(MlxkError):
    """An error of the file system: no permission, no space, not a directory, an I/O error."""

    code = "storage_error"


class UnhealthyModelError(MlxkError):
    """The model's files are damaged or incomplete, so it cannot be loaded."""

    code = "model_unhealthy"


class IncompatibleModelError(MlxkError):
    """The model is complete but no installed backend can run it."""

    code = "incompatible_model"


class UntrustedModelCodeError(MlxkError):
    """The model requires its own code, which is never executed."""

    code = "untrusted_model_code"


class BackendNotInstalledError(MlxkError):
    """A package that the operation needs is not installed."""

    code = "backend_not_installed"


class CapabilityError(MlxkError):
    """The model does not support the request, such as an image as input."""

    code = "capability_not_supported"


class ContextLengthError(MlxkError):
    """The prompt does not fit into the model's context window; the message states both numbers."""

    code = "context_length_exceeded"


class InsufficientMemoryError(MlxkError):
    """The estimate for weights and KV cache is beyond this machine's memory budget."""

    code = "insufficient_memory"


class QueueFullError(MlxkError):
    """The queue of requests is full; a later attempt may succeed."""

    code = "queue_full"
    retryable = True


class FeatureGateError(MlxkError):
    """The feature is disabled; the message names the variable that enables it."""

    code = "feature_disabled"


class AccessDeniedError(MlxkError):
    """The hub denies access to the model with this token, or without one."""

    code = "access_denied"


class NetworkError(MlxkError):
    """The hub cannot be reached, does not respond in time, or reports an internal error."""

    code = "network_error"
    retryable = True


class DownloadFailedError(MlxkError):
    """The hub sent an invalid response or file; valid bytes are kept."""

    code = "download_failed"
    retryable = True


class UploadFailedError(MlxkError):
    """The hub refused the upload; nothing was committed."""

    code = "upload_failed"
    retryable = True


class RequiresConfirmationError(MlxkError):
    """The operation needs a confirmation and there is no terminal; the hint names the flag that confirms it."""

    code = "requires_confirmation"


class LocksPresentError(MlxkError):
    """The model is in use by another process, which the message names where it is known, or by requests."""

    code = "locks_present"
    retryable = True


class WorkspaceModelError(MlxkError):
    """The operation is limited to cached models, and this one is a workspace or a built-in model."""

    code = "workspace_model"


class SecretsFoundError(MlxkError):
    """Files to be published seem to contain secrets; ``detail`` lists file, line and kind, never the secret."""

    code = "secrets_found"


class ConversionFailedError(MlxkError):
    """The weights cannot be converted, or the result is incomplete; no target is left behind."""

    code = "conversion_failed"


class ExecutionError(MlxkError):
    """Loading or running a model failed."""

    code = "execution_error"


class InterruptedRunError(MlxkError):
    """The user interrupted the operation; its output up to then has been delivered."""

    code = "interrupted"


class ParameterNotSupportedError(MlxkError):
    """A field of a request has a documented value that is not supported; the message names it."""

    code = "parameter_not_supported"


class NotFoundError(MlxkError):
    """The server has no such path."""

    code = "not_found"


class MethodNotAllowedError(MlxkError):
    """The path exists but not with this HTTP method."""

    code = "method_not_allowed"


class UnsupportedMediaTypeError(MlxkError):
    """The body of a request is not in the format that the path requires."""

    code = "unsupported_media_type"


class PayloadTooLargeError(MlxkError):
    """A request is larger, or nested deeper, than the server allows."""

    code = "payload_too_large"


class RequestTimeoutError(MlxkError):
    """A request was not received completely in time."""

    code = "request_timeout"
    retryable = True


class UnauthorizedError(MlxkError):
    """The server requires an API key, and the request has no valid one."""

    code = "unauthorized"


class ForbiddenOriginError(MlxkError):
    """The request comes from a web page, or names a host, that the operator has not allowed."""

    code = "forbidden_origin"


class ServerShutdownError(MlxkError):
    """The server is shutting down and accepts no requests."""

    code = "server_shutdown"
    retryable = True


class RankLostError(MlxkError):
    """One of the processes that compute a model together has gone."""

    code = "rank_lost"
    retryable = True


class PortInUseError(MlxkError):
    """The address of the server is in use by another program."""

    code = "port_in_use"


class InternalError(MlxkError):
    """A defect of this program; the log has the details."""

    code = "internal_error"


def all_error_types() -> tuple[type[MlxkError], ...]:
    """Return every error class, in order of definition."""
    return tuple(MlxkError.__subclasses__())


def error_type_of(code: str) -> type[MlxkError]:
    """Return the error class of a code from another process of this program; ``InternalError`` for an unknown code."""
    return {error.code: error for error in all_error_types()}.get(code, InternalError)
