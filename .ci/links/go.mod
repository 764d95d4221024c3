module shardkv.io/ci/links

go 1.26
