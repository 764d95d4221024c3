package main

import "shardkv.dev/ci/etcd/process"

// stores makes the stores that are held against etcd.
type stores struct {
	name string
	// Makes a fresh store, and returns the function that ends it.
	fresh func(seed uint64) (*side, func(), error)
	// Ends all.
	stop func()
}

func newStores(etcd string) *stores {
	return &stores{name: "a second etcd", fresh: secondEtcd(etcd), stop: func() {}}
}

// secondEtcd returns a function that starts an etcd for each seed.
func secondEtcd(program string) func(uint64) (*side, func(), error) {
	return func(uint64) (*side, func(), error) {
		server, err := process.Etcd(program)
		if err != nil {
			return nil, nil, err
		}
		side, err := dial("second etcd", server.Addresses[0], "", false)
		return side, server.Stop, err
	}
}
