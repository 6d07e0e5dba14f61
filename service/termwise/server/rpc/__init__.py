"""The gRPC face: servicers, converters, interceptors."""
