module shardkv.dev/ci/links

go 1.24.0
