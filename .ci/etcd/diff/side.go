package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// The time that one call may take.
const callTimeout = 20 * time.Second

// call is a unary call, or a stream that is read to its end.
type call struct {
	name    string
	request proto.Message
}

func (c call) String() string { return c.name + " " + text(c.request) }

// answer is the answer to a call: a message or an error.
type answer struct {
	message proto.Message
	err     error
}

func (a answer) String() string {
	if a.err != nil {
		return fmt.Sprintf("%v %q", status.Code(a.err), status.Convert(a.err).Message())
	}
	return text(a.message)
}

// text renders a message, or the beginning of a long one.
func text(message proto.Message) string {
	text := prototext.MarshalOptions{Multiline: false}.Format(message)
	if len(text) > 1500 {
		return fmt.Sprintf("%s ... (%d characters)", text[:1500], len(text))
	}
	return text
}

// side is one of the two stores that are compared.
type side struct {
	name string
	conn *grpc.ClientConn
	// Metadata of each call.
	metadata metadata.MD
	streams  []*stream
}

// dial connects to a store: to etcd, or to a keyspace that the metadata or the authority names.
func dial(name, address, keyspace string, byAuthority bool) (*side, error) {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 30)),
	}
	side := &side{name: name, metadata: metadata.MD{}}
	switch {
	case byAuthority:
		options = append(options, grpc.WithAuthority(keyspace+":2379"))
	case keyspace != "":
		side.metadata.Set("shardkv-keyspace", keyspace)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	side.conn = conn
	return side, err
}

func (s *side) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	return metadata.NewOutgoingContext(ctx, s.metadata), cancel
}

// do sends a call and returns its answer.
func (s *side) do(call call) answer {
	ctx, cancel := s.context()
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, callTimeout)
	defer stop()
	// Each side gets messages of its own, because an answer is normalised in place.
	message, err := s.send(ctx, call)
	return answer{message, err}
}

func (s *side) send(ctx context.Context, call call) (proto.Message, error) {
	kv, lease := pb.NewKVClient(s.conn), pb.NewLeaseClient(s.conn)
	switch request := call.request.(type) {
	case *pb.RangeRequest:
		if call.name == "RangeStream" {
			return rangeStream(ctx, kv, request)
		}
		return kv.Range(ctx, request)
	case *pb.PutRequest:
		return kv.Put(ctx, request)
	case *pb.DeleteRangeRequest:
		return kv.DeleteRange(ctx, request)
	case *pb.TxnRequest:
		return kv.Txn(ctx, request)
	case *pb.CompactionRequest:
		return kv.Compact(ctx, request)
	case *pb.LeaseGrantRequest:
		return lease.LeaseGrant(ctx, request)
	case *pb.LeaseRevokeRequest:
		return lease.LeaseRevoke(ctx, request)
	case *pb.LeaseTimeToLiveRequest:
		return lease.LeaseTimeToLive(ctx, request)
	case *pb.LeaseLeasesRequest:
		return lease.LeaseLeases(ctx, request)
	case *pb.LeaseKeepAliveRequest:
		return keepAlive(ctx, lease, request)
	}
	panic(fmt.Sprintf("no method for %s", call.name))
}

// rangeStream reads a whole stream and merges its parts into one answer.
func rangeStream(ctx context.Context, kv pb.KVClient, request *pb.RangeRequest) (proto.Message, error) {
	stream, err := kv.RangeStream(ctx, request)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		proto.Merge(whole, part.RangeResponse)
	}
}

// keepAlive renews a lease once.
func keepAlive(ctx context.Context, lease pb.LeaseClient, request *pb.LeaseKeepAliveRequest) (proto.Message, error) {
	stream, err := lease.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(request); err != nil {
		return nil, err
	}
	return stream.Recv()
}

// ask sends one call to both sides, and returns what they answer.
func ask(sides [2]*side, call call) [2]answer {
	var answers [2]answer
	done := make(chan struct{})
	go func() {
		answers[1] = sides[1].do(call)
		close(done)
	}()
	answers[0] = sides[0].do(call)
	<-done
	return answers
}
