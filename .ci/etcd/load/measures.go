package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// measure is a call that many clients repeat.
type measure struct {
	name    string
	clients int
	// Makes the call with a number, which differs from those of other calls.
	call func(ctx context.Context, kv pb.KVClient, number int) error
}

// load is what is measured of a side for some time.
type load struct {
	name string
	load func(s *side, turn time.Duration, into *result) error
}

// loads returns all loads in the order of the table.
func loads() []load {
	var all []load
	for _, of := range measures() {
		all = append(all, load{of.name, func(s *side, turn time.Duration, into *result) error { return s.load(of, turn, into) }})
	}
	for _, of := range []fanOut{1, 100, 10_000} {
		all = append(all, load{of.name(), of.load})
	}
	return all
}

func measures() []measure {
	return []measure{
		{"put, 64 clients", 64, putOne},
		{"put, 256 clients", 256, putOne},
		{"range of one key, 64 clients", 64, rangeOne(false)},
		{"serializable range of one key, 64 clients", 64, rangeOne(true)},
		{"range of 1,000 keys, 8 clients", 8, rangeMany},
		{"transaction, 64 clients", 64, update},
		{"mix of an API server, 64 clients", 64, mix},
	}
}

// key returns the key with a number. Calls in a row are far apart.
func key(number int) []byte {
	return fmt.Appendf(nil, "/registry/pods/%08d", number*7_919%keys)
}

func put(number int) *pb.PutRequest {
	return &pb.PutRequest{Key: key(number), Value: bytes.Repeat([]byte("v"), valueBytes)}
}

func putOne(ctx context.Context, kv pb.KVClient, number int) error {
	_, err := kv.Put(ctx, put(number))
	return err
}

func rangeOne(serializable bool) func(context.Context, pb.KVClient, int) error {
	return func(ctx context.Context, kv pb.KVClient, number int) error {
		answer, err := kv.Range(ctx, &pb.RangeRequest{Key: key(number), Serializable: serializable})
		if err == nil && len(answer.Kvs) != 1 {
			err = fmt.Errorf("%d pairs", len(answer.Kvs))
		}
		return err
	}
}

func rangeMany(ctx context.Context, kv pb.KVClient, number int) error {
	start := number % 8 * 1_000
	answer, err := kv.Range(ctx, &pb.RangeRequest{
		Key:      fmt.Appendf(nil, "/registry/pods/%08d", start),
		RangeEnd: fmt.Appendf(nil, "/registry/pods/%08d", start+1_000),
	})
	if err == nil && len(answer.Kvs) != 1_000 {
		err = fmt.Errorf("%d pairs", len(answer.Kvs))
	}
	return err
}

// update is the update of Kubernetes: it puts if the key was not changed, and returns what it is otherwise.
func update(ctx context.Context, kv pb.KVClient, number int) error {
	revision := int64(1)
	for {
		answer, err := kv.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{
				Key: key(number), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
			}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put(number)}}},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key(number)}}}},
		})
		if err != nil || answer.Succeeded {
			return err
		}
		pairs := answer.Responses[0].GetResponseRange().Kvs
		if len(pairs) != 1 {
			return fmt.Errorf("%d pairs", len(pairs))
		}
		revision = pairs[0].ModRevision
	}
}

// mix is 6 reads of one key, 3 updates and a list of 1,000 keys, of ten calls.
func mix(ctx context.Context, kv pb.KVClient, number int) error {
	switch turn := number / 64 % 10; {
	case turn < 6:
		return rangeOne(false)(ctx, kv, number)
	case turn < 9:
		return update(ctx, kv, number)
	default:
		return rangeMany(ctx, kv, number)
	}
}
