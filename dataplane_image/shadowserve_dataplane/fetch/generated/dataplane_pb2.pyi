from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("protocol", "sidecar", "tcp")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SIDECAR_FIELD_NUMBER: _ClassVar[int]
    TCP_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    sidecar: str
    tcp: TcpPlacement
    def __init__(self, protocol: _Optional[int] = ..., sidecar: _Optional[str] = ..., tcp: _Optional[_Union[TcpPlacement, _Mapping]] = ...) -> None: ...

class TcpPlacement(_message.Message):
    __slots__ = ("host", "port", "token", "local")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    token: bytes
    local: str
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., token: _Optional[bytes] = ..., local: _Optional[str] = ...) -> None: ...

class AttachReply(_message.Message):
    __slots__ = ("protocol", "attachment", "version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    attachment: int
    version: str
    def __init__(self, protocol: _Optional[int] = ..., attachment: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("layers", "kv_heads", "head_dim", "tokens", "dtype")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    dtype: str
    def __init__(self, layers: _Optional[int] = ..., kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., tokens: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("index", "key", "slot", "lease")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    index: int
    key: bytes
    slot: int
    lease: int
    def __init__(self, index: _Optional[int] = ..., key: _Optional[bytes] = ..., slot: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("attachment", "job", "deadline_ms", "landing", "shape", "chunks")
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    LANDING_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    attachment: int
    job: int
    deadline_ms: int
    landing: str
    shape: Shape
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    def __init__(self, attachment: _Optional[int] = ..., job: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., landing: _Optional[str] = ..., shape: _Optional[_Union[Shape, _Mapping]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ...) -> None: ...

class ChunkResult(_message.Message):
    __slots__ = ("index", "outcome", "encoded_bytes", "values_bytes", "detail")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ENCODED_BYTES_FIELD_NUMBER: _ClassVar[int]
    VALUES_BYTES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    index: int
    outcome: str
    encoded_bytes: int
    values_bytes: int
    detail: str
    def __init__(self, index: _Optional[int] = ..., outcome: _Optional[str] = ..., encoded_bytes: _Optional[int] = ..., values_bytes: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...

class ChunkResults(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ChunkResult]
    def __init__(self, results: _Optional[_Iterable[_Union[ChunkResult, _Mapping]]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("attachment", "job")
    ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    attachment: int
    job: int
    def __init__(self, attachment: _Optional[int] = ..., job: _Optional[int] = ...) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
