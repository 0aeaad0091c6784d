"""Storage.

`files`: bytes by URI; `places`: what a URI points to; `run_folder`: stages, published whole, from `stage_build`;
`careful`: faults are not absences.
"""

from ivis_spark.manifest import FORMAT_VERSION, Manifest, differences, fingerprint, installed_versions
from ivis_spark.storage.careful import children, exists, find, protocol
from ivis_spark.storage.files import (
    DigestedWriter,
    check_bucket,
    check_writable,
    describe_files,
    digest_file,
    encode_json,
    filesystem,
    in_parallel,
    keep_only,
    list_files,
    local_copy,
    local_path,
    move_files,
    move_folder,
    parse_json,
    put_file,
    put_folder,
    read_bytes,
    read_json,
    remove_file,
    remove_folder,
    replace_file,
    write_bytes,
    write_json,
)
from ivis_spark.storage.names import join, normalise_uri
from ivis_spark.storage.places import Place, keep_apart
from ivis_spark.storage.run_folder import DOCTOR, MANIFEST, MARK, MapFiles, RunFolder
from ivis_spark.storage.stage_build import StageBuild

__all__ = [
    "DOCTOR",
    "FORMAT_VERSION",
    "MANIFEST",
    "MARK",
    "DigestedWriter",
    "Manifest",
    "MapFiles",
    "Place",
    "RunFolder",
    "StageBuild",
    "check_bucket",
    "check_writable",
    "children",
    "describe_files",
    "differences",
    "digest_file",
    "encode_json",
    "exists",
    "filesystem",
    "find",
    "fingerprint",
    "in_parallel",
    "installed_versions",
    "join",
    "keep_apart",
    "keep_only",
    "list_files",
    "local_copy",
    "local_path",
    "move_files",
    "move_folder",
    "normalise_uri",
    "parse_json",
    "protocol",
    "put_file",
    "put_folder",
    "read_bytes",
    "read_json",
    "remove_file",
    "remove_folder",
    "replace_file",
    "write_bytes",
    "write_json",
]
