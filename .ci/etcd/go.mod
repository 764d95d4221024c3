module shardkv.dev/ci/etcd

go 1.24.0
