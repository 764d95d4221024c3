package main

import (
	"context"
	"errors"
	"os"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// faults change what the second store answers. A history must find each of them.
var faults = map[string]struct {
	unary  func(answer any, err error) error
	stream func(message *pb.WatchResponse) error
}{
	"a count without the last pair": {unary: func(answer any, err error) error {
		if answer, ok := answer.(*pb.RangeResponse); ok && answer.Count > 2 {
			answer.Count--
		}
		return err
	}},
	"a lost pair": {unary: func(answer any, err error) error {
		if answer, ok := answer.(*pb.RangeResponse); ok && len(answer.Kvs) > 2 {
			answer.Kvs = answer.Kvs[1:]
		}
		return err
	}},
	"another text": {unary: func(_ any, err error) error {
		if status.Convert(err).Message() == "etcdserver: mvcc: required revision has been compacted" {
			return status.Error(status.Code(err), "etcdserver: compacted")
		}
		return err
	}},
	"no revision inside transactions": {unary: func(answer any, err error) error {
		if answer, ok := answer.(*pb.TxnResponse); ok {
			for _, one := range answer.Responses {
				if put := one.GetResponsePut(); put != nil {
					put.Header = nil
				}
			}
		}
		return err
	}},
	"the revision of a lease's end": {unary: func(answer any, err error) error {
		if answer, ok := answer.(*pb.LeaseRevokeResponse); ok && err == nil {
			answer.Header.Revision++
		}
		return err
	}},
	"a lost event": {stream: func(message *pb.WatchResponse) error {
		if len(message.Events) > 1 {
			message.Events = message.Events[1:]
		}
		return nil
	}},
	"no previous pair": {stream: func(message *pb.WatchResponse) error {
		for _, event := range message.Events {
			event.PrevKv = nil
		}
		return nil
	}},
	"a transaction in two messages": {stream: func(message *pb.WatchResponse) error {
		if len(message.Events) > 1 {
			message.Header.Revision = message.Events[0].Kv.ModRevision - 1
		}
		return nil
	}},
	"no compacted revision": {stream: func(message *pb.WatchResponse) error {
		message.CompactRevision = 0
		return nil
	}},
	"a stream that ends": {stream: func(message *pb.WatchResponse) error {
		if len(message.Events) > 2 {
			return errors.New("lost")
		}
		return nil
	}},
}

func TestFindsFaults(t *testing.T) {
	program := os.Getenv("ETCD")
	if program == "" {
		t.Skip("ETCD doesn't name the program")
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			unary := func(ctx context.Context, method string, request, answer any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
				err := invoke(ctx, method, request, answer, conn, options...)
				if fault.unary != nil {
					return fault.unary(answer, err)
				}
				return err
			}
			stream := func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, options ...grpc.CallOption) (grpc.ClientStream, error) {
				stream, err := open(ctx, desc, conn, method, options...)
				if fault.stream != nil && err == nil {
					stream = &faulty{stream, fault.stream}
				}
				return stream, err
			}
			for seed := range uint64(3) {
				err := compareFaulty(program, seed, grpc.WithUnaryInterceptor(unary), grpc.WithStreamInterceptor(stream))
				if err != nil {
					t.Logf("found: %.700v", err)
					return
				}
			}
			t.Error("three histories have not found it")
		})
	}
}

// faulty is a stream whose messages are changed.
type faulty struct {
	grpc.ClientStream
	fault func(*pb.WatchResponse) error
}

func (f *faulty) RecvMsg(into any) error {
	if err := f.ClientStream.RecvMsg(into); err != nil {
		return err
	}
	if message, ok := into.(*pb.WatchResponse); ok {
		return f.fault(message)
	}
	return nil
}

func compareFaulty(program string, seed uint64, options ...grpc.DialOption) error {
	stores, err := newStores(program, "")
	if err != nil {
		return err
	}
	fresh := stores.fresh
	stores.fresh = func(seed uint64) (*side, func(), error) {
		side, stop, err := fresh(seed)
		if err != nil {
			return nil, nil, err
		}
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
		side.conn, err = grpc.NewClient(side.conn.CanonicalTarget(), options...)
		return side, stop, err
	}
	_, err = compare(program, stores, seed, 300)
	return err
}

func TestStopsNoEtcd(t *testing.T) {
	for seed := range uint64(2000) {
		puts, unchecked := contents(newSource(seed).txn())
		if puts && unchecked {
			t.Fatalf("seed %d: a transaction that may stop an etcd", seed)
		}
	}
}
