"""The object store that the tests start refuses to overwrite what was put with create-only, in one request or in parts."""

import os
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from tests.object_store import ObjectStore

pytestmark = pytest.mark.slow
PART_BYTES = 5 * 2**20  # the smallest that S3 takes
CONTENTS = {"small": [b"first"], "parts": [bytes([number]) * PART_BYTES for number in range(3)]}


@pytest.fixture
def file_system(s3: ObjectStore) -> Iterator[S3FileSystem]:
    """s3fs as the environment configures it, with nothing left from another test."""
    found = S3FileSystem(skip_instance_cache=True, default_block_size=PART_BYTES)
    yield found
    S3FileSystem.close_session(found.loop, found.s3)


def put(file_system: S3FileSystem, key: str, pieces: list[bytes]) -> None:
    """Put an object where none is."""
    with file_system.open(key, "xb") as file:
        for piece in pieces:
            file.write(piece)


def test_environment_leads_to_the_store(s3: ObjectStore, file_system: S3FileSystem) -> None:
    assert os.environ["AWS_ENDPOINT_URL"] == s3.endpoint == file_system.s3.meta.endpoint_url
    first, second = s3.bucket(), s3.bucket()
    assert first != second
    assert {first, second} <= set(file_system.ls("", refresh=True))


@pytest.mark.parametrize("existing", ["small", "parts"])
@pytest.mark.parametrize("later", ["small", "parts"])
def test_create_only_put_keeps_the_existing_object(s3: ObjectStore, file_system: S3FileSystem, existing: str, later: str) -> None:
    key = f"{s3.bucket()}/key"
    put(file_system, key, CONTENTS[existing])
    with pytest.raises(FileExistsError, match="At least one of the pre-conditions you specified did not hold"):
        put(file_system, key, [*CONTENTS[later], b"other"])
    assert file_system.cat(key) == b"".join(CONTENTS[existing])


def test_refused_upload_in_parts_stays_listed_until_it_is_aborted(s3: ObjectStore, file_system: S3FileSystem) -> None:
    bucket = s3.bucket()
    put(file_system, f"{bucket}/key", CONTENTS["small"])
    assert file_system.list_multipart_uploads(bucket) == []
    with pytest.raises(FileExistsError):
        put(file_system, f"{bucket}/key", CONTENTS["parts"])
    (upload,) = file_system.list_multipart_uploads(bucket)
    assert upload["Key"] == "key"
    file_system.abort_mpu(bucket, "key", upload["UploadId"])
    assert file_system.list_multipart_uploads(bucket) == []


def test_store_itself_refuses_to_complete_over_an_existing_object(s3: ObjectStore, file_system: S3FileSystem) -> None:
    where = {"Bucket": s3.bucket(), "Key": "key"}
    put(file_system, "/".join(where.values()), CONTENTS["small"])

    def call(name: str, **arguments: object) -> dict[str, str]:
        return sync(file_system.loop, getattr(file_system.s3, name), **where, **arguments)

    upload = call("create_multipart_upload")["UploadId"]
    tag = call("upload_part", UploadId=upload, PartNumber=1, Body=b"other")["ETag"]
    parts = {"UploadId": upload, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": tag}]}}
    with pytest.raises(ClientError, match=r"PreconditionFailed.*CompleteMultipartUpload"):
        call("complete_multipart_upload", **parts, IfNoneMatch="*")
    call("complete_multipart_upload", **parts)  # the same request without the condition overwrites
    assert file_system.cat("/".join(where.values())) == b"other"
